// The int4 kernel in SSE4.1, for processors without AVX2.
#if defined(__x86_64__)
#include "kernels/target.h"

BLIP2RT_TARGET("sse4.1")

#include <immintrin.h>

#include "kernels/int4/vectors.h"

namespace blip2rt {
namespace {

struct Sse41 : FourOutputs<Sse41> {
  static constexpr size_t kRows8Bit = 10, kRows16Bit = 6, kFewRows8Bit = 4, kFewRows16Bit = 1;
  static constexpr bool kUnrolls = true;
  static constexpr size_t kTilesAtOnce = 2, kRowDivisor = 2;
  static constexpr size_t kValueCopies = 4;  // one for each lane: no instruction loads four bytes into all of them
  using Part = Ints;

  // Finite halves: moves exponent and mantissa, and corrects the exponent.
  static Floats half(Ints pairs) { return reinterpret_cast<Floats>(((pairs << 16) >> 3) & ~0x70001fff) * 0x1p112f; }
  static Floats load_halves(const uint16_t* from) {
    return half(reinterpret_cast<Ints>(_mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)))));
  }
  // Adds pairs of products. The largest sum of a piece, 8 * 2 * 15 * 128, fits into 16 bits, so nothing saturates.
  static __m128i pairs(Ints codes, __m128i values) {
    return _mm_maddubs_epi16(reinterpret_cast<__m128i>(codes), values);
  }
  static Ints add_pairs(Ints sum, __m128i pairs) {
    return sum + reinterpret_cast<Ints>(_mm_madd_epi16(pairs, _mm_set1_epi16(1)));
  }
  static Part begin_piece(Ints) { return Part{}; }
  static Ints end_piece(Ints sum, Part part) { return add_pairs(sum, reinterpret_cast<__m128i>(part)); }
  template <size_t Index>
  static Part dot_four(Part part, Ints codes, const int8_t* values) {
    const __m128i four = _mm_load_si128(reinterpret_cast<const __m128i*>(values) + Index);
    part = reinterpret_cast<Ints>(_mm_add_epi16(reinterpret_cast<__m128i>(part), pairs(codes, four)));
    asm("" : "+x"(part));  // otherwise GCC adds products pairwise and runs out of registers
    return part;
  }
  static Ints dot_all(Ints sum, Ints low, Ints high, const int8_t* values) {
    const auto evens = reinterpret_cast<__m128i>(load(values));
    const auto odds = reinterpret_cast<__m128i>(load(values + sizeof(Ints)));
    return add_pairs(sum, _mm_add_epi16(pairs(low, evens), pairs(high, odds)));
  }
  static Ints round(const float* x, float inverse) {
    return reinterpret_cast<Ints>(_mm_cvtps_epi32(_mm_mul_ps(_mm_loadu_ps(x), _mm_set1_ps(inverse))));
  }
  static void store_lowest(const Ints* eight, int8_t* to) {
    const __m128i words = _mm_packs_epi32(reinterpret_cast<__m128i>(eight[0]), reinterpret_cast<__m128i>(eight[1]));
    const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 2, 6, 10, 14, -1, -1, -1, -1, -1, -1, -1, -1);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_shuffle_epi8(words, order));
  }
};

}  // namespace

extern const Int4Kernel kInt4Sse41 = {"sse41",         Sse41::kLanes,   Sse41::kTilesAtOnce,
                                      quantize<Sse41>, multiply<Sse41>, Sse41::kValueCopies};

}  // namespace blip2rt
BLIP2RT_TARGET_END
#endif
