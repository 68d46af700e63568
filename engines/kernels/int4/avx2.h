// The AVX2 vectors for tile.h: 8 outputs per vector. Include it after BLIP2RT_TARGET.
#pragma once

#include <immintrin.h>

#include "kernels/int4/few_rows.h"
#include "kernels/int4/quantize_avx2.h"
#include "kernels/transpose_avx2.h"

namespace blip2rt {
namespace {

struct Avx2 {
  static constexpr size_t kLanes = 8, kRows8Bit = 8, kRows16Bit = 6, kFewRows = 5;
  static constexpr size_t kTilesAtOnce = 2, kRowDivisor = 2;
  static constexpr bool kPairTilesForFewRows = true;  // multiply two tiles at once even for few rows
  static constexpr bool kStoresUnpacked = true, kUnpacksPairs = false;
  using Ints = __m256i;
  using Part = Ints;
  using Floats = __m256;

  static void transpose(const uint8_t* base, size_t stride, Ints* to) { transpose_groups(base, stride, to); }

  static Ints load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
  static void store(uint8_t* to, Ints value) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value); }
  static Floats load_floats(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, Floats value) { _mm256_storeu_ps(to, value); }
  static Floats zero() { return _mm256_setzero_ps(); }
  static Floats broadcast(float value) { return _mm256_set1_ps(value); }
  static Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static Floats mul_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static Floats mul_sub(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); }  // c - a * b
  static Floats to_float(Ints value) { return _mm256_cvtepi32_ps(value); }
  static Floats half(Ints pairs) {
    const Ints low = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff));
    const Ints packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0x08);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
  }
  static Ints high_half(Ints pairs) { return _mm256_srli_epi32(pairs, 16); }
  static Ints low_nibble_of_lane(Ints value) { return _mm256_and_si256(value, _mm256_set1_epi32(15)); }
  static Ints next_nibble_of_lane(Ints value) { return _mm256_srli_epi32(value, 4); }
  static Ints low_nibbles(Ints value) { return _mm256_and_si256(value, _mm256_set1_epi8(15)); }
  static Ints high_nibbles(Ints value) { return _mm256_and_si256(_mm256_srli_epi16(value, 4), _mm256_set1_epi8(15)); }
  static Ints join(Ints high, Ints low) { return _mm256_add_epi32(_mm256_slli_epi32(high, 8), low); }
  static Ints no_products() { return _mm256_setzero_si256(); }
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
  // Spreads B numbers evenly over the lanes.
  template <size_t B>
  static Floats spread(const float* from) {
    return B == 1 ? broadcast(*from) : _mm256_set_m128(_mm_set1_ps(from[1]), _mm_set1_ps(from[0]));
  }
  static Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static float sum(Floats value) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }
  static int quantize(const float* x, size_t count, float inverse, int8_t* to, int8_t* low) {
    return x86::quantize(x, count, inverse, to, low);
  }
};

}  // namespace
}  // namespace blip2rt
