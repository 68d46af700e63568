// The AVX2 vectors for tile.h: 8 outputs per vector. Include it after BLIP2RT_TARGET.
#pragma once

#include <immintrin.h>

#include "kernels/int4/quantize_avx2.h"

namespace blip2rt {
namespace {

struct Avx2 : Int4Vectors<EightLanes> {
  static constexpr size_t kRows8Bit = 8, kRows16Bit = 6, kFewRows8Bit = 5, kFewRows16Bit = 1;
  static constexpr bool kUnrolls = true;
  static constexpr size_t kTilesAtOnce = 2, kRowDivisor = 2;
  using Part = Ints;

  static Floats half(Ints pairs) {
    const Ints low = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff));
    const Ints packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0x08);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
  }
  // Adds pairs of products. The largest sum of a piece, 8 * 2 * 15 * 128, fits into 16 bits, so nothing saturates.
  static Ints pairs(Ints codes, Ints values) { return _mm256_maddubs_epi16(codes, values); }
  static Ints add_pairs(Ints sum, Ints pairs) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static Ints begin_piece(Ints) { return _mm256_setzero_si256(); }
  static Ints end_piece(Ints sum, Ints part) { return add_pairs(sum, part); }
  template <size_t Index>
  static Ints dot_four(Ints part, Ints codes, const int8_t* values) {
    part = _mm256_add_epi16(part, pairs(codes, _mm256_set1_epi32(x86::four<Index>(values))));
    asm("" : "+x"(part));  // otherwise GCC adds products pairwise and runs out of registers
    return part;
  }
  static Ints dot_all(Ints sum, Ints low, Ints high, const int8_t* values) {
    return add_pairs(sum, _mm256_add_epi16(pairs(low, load(values)), pairs(high, load(values + sizeof(Ints)))));
  }
  static Floats load_halves(const uint16_t* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static Floats load_nibbles(const uint8_t* from) {
    int eight;
    std::memcpy(&eight, from, sizeof eight);
    const Ints shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    return to_float(low_nibble_of_lane(_mm256_srlv_epi32(_mm256_set1_epi32(eight), shifts)));
  }
  // Spreads B lanes from First on evenly over all.
  template <size_t B, size_t First>
  static Floats spread(Floats value) {
    constexpr int kFirst = First, kLast = First + B - 1;
    return _mm256_permutevar8x32_ps(value,
                                    _mm256_setr_epi32(kFirst, kFirst, kFirst, kFirst, kLast, kLast, kLast, kLast));
  }
  static float sum(Floats value) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }
  static int quantize(const float* x, size_t count, float inverse, int8_t* to, int8_t* low) {
    return quantize_eights<x86::Eight>(x, count, inverse, to, low);
  }
};

}  // namespace
}  // namespace blip2rt
