// The int4 kernel in WebAssembly's SIMD128, whose only product of integers has 16 bits.
#if defined(__wasm_simd128__)
#include <wasm_simd128.h>

#include "kernels/int4/vectors.h"

namespace blip2rt {
namespace {

struct Simd128 : FourOutputs<Simd128> {
  static constexpr size_t kRows8Bit = 4, kRows16Bit = 4, kFewRows8Bit = 3, kFewRows16Bit = 3;
  static constexpr bool kUnrolls = false;  // a compiled engine is downloaded: every page pays for its bytes
  static constexpr size_t kTilesAtOnce = 2, kRowDivisor = 1;
  static constexpr bool kWideValues = true;
  static constexpr size_t kValueCopies = 2;
  using Part = Ints;

  // Finite halves: moves exponent and mantissa, and corrects the exponent.
  static Floats half(Ints pairs) { return reinterpret_cast<Floats>(((pairs << 16) >> 3) & ~0x70001fff) * 0x1p112f; }
  static Floats load_halves(const uint16_t* from) { return half(wasm_u32x4_load16x4(from)); }

  static Ints begin_piece(Ints sum) { return sum; }
  static Ints end_piece(Ints, Ints part) { return part; }
  static Ints dot(Ints sum, v128_t codes, v128_t values) { return sum + Ints(wasm_i32x4_dot_i16x8(codes, values)); }
  static v128_t first_of_two(Ints codes) { return wasm_v128_and(codes, wasm_i16x8_const_splat(15)); }
  static v128_t second_of_two(Ints codes) { return wasm_u16x8_shr(codes, 8); }
  template <size_t Index>
  static Ints dot_four(Ints part, Ints codes, const int8_t* values) {
    part = dot(part, first_of_two(codes), wasm_v128_load32_splat(values + Index * 8));
    return dot(part, second_of_two(codes), wasm_v128_load32_splat(values + Index * 8 + 4));
  }
  static Ints dot_all(Ints sum, Ints low, Ints high, const int8_t* values) {
    sum = dot(sum, first_of_two(low), load(values));
    sum = dot(sum, second_of_two(low), load(values + 16));
    sum = dot(sum, first_of_two(high), load(values + 32));
    return dot(sum, second_of_two(high), load(values + 48));
  }
  static Ints round(const float* x, float inverse) { return nearest(load_floats(x) * inverse); }
  static void store_lowest(const Ints* eight, int8_t* to) {
    const v128_t bytes = wasm_i8x16_shuffle(eight[0], eight[1], 0, 8, 16, 24, 4, 12, 20, 28, 0, 0, 0, 0, 0, 0, 0, 0);
    wasm_v128_store64_lane(to, bytes, 0);
  }
};

}  // namespace

extern const Int4Kernel kInt4Simd128 = {"simd128",         Simd128::kLanes,   Simd128::kTilesAtOnce,
                                        quantize<Simd128>, multiply<Simd128>, Simd128::kValueCopies};

}  // namespace blip2rt
#endif
