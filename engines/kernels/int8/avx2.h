// The AVX2 vectors for tile.h: 32 outputs per tile. Weights and activations are widened to 16 bits, because the
// instruction for bytes sums two products in 16 bits, which would overflow. Include it after BLIP2RT_TARGET.
#pragma once

#include <immintrin.h>

#include "kernels/int8/tile.h"
#include "kernels/transpose_avx2.h"

namespace blip2rt {
namespace {

struct Avx2 {
  static constexpr size_t kLanes = 8, kGroup = 2, kRows = 3;
  static constexpr int32_t kValueOffset = 0;
  using Value = int16_t;
  using Ints = __m256i;

  static Ints load(const uint8_t* from) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(from)); }
  static void store(uint8_t* to, Ints value) { _mm256_store_si256(reinterpret_cast<__m256i*>(to), value); }
  static void store(float* to, __m256 value) { _mm256_store_ps(to, value); }
  static Ints zero_ints() { return _mm256_setzero_si256(); }
  static Ints ones() { return _mm256_set1_epi16(1); }
  static Ints broadcast(int32_t value) { return _mm256_set1_epi32(value); }
  static Ints sub(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
  static Ints mul(Ints a, Ints b) { return _mm256_mullo_epi32(a, b); }
  static Ints dot(Ints sum, Ints values, Ints codes) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(values, codes));
    asm("" : "+x"(sum));  // otherwise GCC hoists the products and runs out of registers
    return sum;
  }

  // Multiplies a group of a row's 16 values by four vectors of codes. The first and third of every four numbers form a
  // group, as do the second and fourth, so that codes are widened without a shuffle.
  using Values = const uint8_t*;
  static Values values(const uint8_t* from) { return from; }
  template <size_t Group>
  static void dot_group(Ints* sums, Values values, const Ints* codes) {
    dot_broadcast<Avx2, Group>(sums, values, codes);
  }

  static void transpose(const uint8_t* base, size_t stride, Ints* to) {
    Ints fours[4];
    transpose_groups(base, stride, fours);
    for (size_t i = 0; i < 4; ++i) {
      to[2 * i] = _mm256_srai_epi16(_mm256_slli_epi16(fours[i], 8), 8);
      to[2 * i + 1] = _mm256_srai_epi16(fours[i], 8);
    }
  }

  static __m256 affine(Ints products, float scale, const float* scales, const float* bias) {
    const __m256 both = _mm256_mul_ps(_mm256_set1_ps(scale), _mm256_load_ps(scales));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), both, _mm256_load_ps(bias));
  }

  // Widens [low, high] to contain x. Returns whether x and high - low are finite.
  static bool range(const float* x, size_t count, float* low, float* high) {
    __m256 least = _mm256_set1_ps(*low), most = _mm256_set1_ps(*high), disordered = _mm256_setzero_ps();
    const auto widen = [&](__m256 value) {
      least = _mm256_min_ps(least, value);
      most = _mm256_max_ps(most, value);
      disordered = _mm256_or_ps(disordered, _mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    };
    size_t i = 0;
    for (; i + kLanes <= count; i += kLanes) widen(_mm256_loadu_ps(x + i));
    for (; i < count; ++i) widen(_mm256_set1_ps(x[i]));
    alignas(32) float of_lanes[2][kLanes];
    _mm256_store_ps(of_lanes[0], least);
    _mm256_store_ps(of_lanes[1], most);
    for (size_t lane = 0; lane < kLanes; ++lane) {
      *low = of_lanes[0][lane] < *low ? of_lanes[0][lane] : *low;
      *high = of_lanes[1][lane] > *high ? of_lanes[1][lane] : *high;
    }
    return _mm256_movemask_ps(disordered) == 0 && *high - *low <= 3.402823466e38f;
  }

  // Rounds x to 0 to 255, zero-padded, and calls put(index, eight numbers).
  template <class Put>
  static void round_eights(const float* x, size_t count, float inverse, float zero, const Put& put) {
    const __m256 factor = _mm256_set1_ps(inverse), offset = _mm256_set1_ps(zero);
    const auto round = [&](const float* from) {
      const __m256 value = _mm256_add_ps(_mm256_round_ps(_mm256_mul_ps(_mm256_loadu_ps(from), factor), 0), offset);
      return _mm256_min_epi32(_mm256_max_epi32(_mm256_cvtps_epi32(value), _mm256_setzero_si256()),
                              _mm256_set1_epi32(255));
    };
    size_t i = 0;
    for (; i + kLanes <= count; i += kLanes) put(i, round(x + i));
    if (i == count) return;
    float left[kLanes] = {};
    std::memcpy(left, x + i, (count - i) * sizeof(float));
    put(i, round(left));
  }

  static void quantize(const float* x, size_t count, float inverse, float zero, int16_t* to) {
    // The lower half of each lane: the first number, the third, the second and the fourth.
    const Ints order = _mm256_setr_epi8(0, 1, 8, 9, 4, 5, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                        0, 1, 8, 9, 4, 5, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1);
    round_eights(x, count, inverse, zero, [&](size_t i, Ints rounded) {
      const Ints halves = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(rounded, order), 0x08);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm256_castsi256_si128(halves));
    });
  }
};

}  // namespace
}  // namespace blip2rt
