// The AVX-512 VNNI vectors for tile.h: 16 outputs per vector. Include it after BLIP2RT_TARGET.
#pragma once

#include <immintrin.h>

#include "kernels/int4/quantize_avx2.h"
#include "kernels/lanes_avx512.h"

namespace blip2rt {
namespace {

struct Avx512 : Int4Vectors<SixteenLanes> {
  static constexpr size_t kRows8Bit = 8, kRows16Bit = 4, kFewRows8Bit = 5, kFewRows16Bit = 1;
  static constexpr bool kUnrolls = true;
  static constexpr size_t kTilesAtOnce = 2, kRowDivisor = 1;
  static constexpr bool kUnpacksPairs = true;
  using Part = Ints;

  static Floats half(Ints pairs) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(pairs)); }
  static Ints begin_piece(Ints sum) { return sum; }
  static Ints end_piece(Ints, Ints part) { return part; }
  template <size_t Index>
  static Ints dot_four(Ints part, Ints codes, const int8_t* values) {
    return _mm512_dpbusd_epi32(part, codes, _mm512_set1_epi32(x86::four<Index>(values)));
  }
  static Ints dot_all(Ints sum, Ints low, Ints high, const int8_t* values) {
    return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum, low, load(values)), high, load(values + sizeof(Ints)));
  }
  static Floats load_halves(const uint16_t* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static Floats load_nibbles(const uint8_t* from) {
    const Ints half = _mm512_castsi128_si512(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
    const Ints halves =
        _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1), half);
    const Ints shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    return to_float(low_nibble_of_lane(_mm512_srlv_epi32(halves, shifts)));
  }
  // Spreads B lanes from First on evenly over all.
  template <size_t B, size_t First>
  static Floats spread(Floats value) {
    constexpr int kShift = B == 1 ? 4 : B == 2 ? 3 : 2;
    const Ints lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_permutexvar_ps(_mm512_add_epi32(_mm512_srli_epi32(lanes, kShift), _mm512_set1_epi32(First)), value);
  }
  static float sum(Floats value) { return _mm512_reduce_add_ps(value); }
  static int quantize(const float* x, size_t count, float inverse, int8_t* to, int8_t* low) {
    return quantize_eights<x86::Eight>(x, count, inverse, to, low);
  }
};

}  // namespace
}  // namespace blip2rt
