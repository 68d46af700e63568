// The int8 kernel in WebAssembly's SIMD128. It widens to 16 bits as AVX2 does, see avx2.h.
#if defined(__wasm_simd128__)
#include <wasm_simd128.h>

#include "kernels/int8/vectors.h"

namespace blip2rt {
namespace {

struct Simd128 : Int8Vectors<Simd128, FourLanes> {
  static constexpr size_t kGroup = 2, kRows = 3;
  using Value = int16_t;

  static Ints ones() { return broadcast(0x10001); }
  static Ints dot(Ints sum, Ints values, Ints codes) { return sum + wasm_i32x4_dot_i16x8(values, codes); }
  static Ints round(const float* x, float inverse) { return nearest(load_floats(x) * inverse); }
  // Of every four: the first number, the third, the second and the fourth.
  static void store_values(const Ints* rounded, int16_t* to) {
    const v128_t words = wasm_i16x8_narrow_i32x4(rounded[0], rounded[1]);
    wasm_v128_store(to, wasm_i16x8_shuffle(words, words, 0, 2, 1, 3, 4, 6, 5, 7));
  }
};

}  // namespace

extern const Int8Kernel kInt8Simd128 = kernel<Simd128>("simd128");

}  // namespace blip2rt
#endif
