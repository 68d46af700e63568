// The AVX-512 VNNI vectors for tile.h: 64 outputs per tile. Include it after BLIP2RT_TARGET.
#pragma once

#include <immintrin.h>

#include "kernels/int8/tile.h"
#include "kernels/transpose_avx512.h"

namespace blip2rt {
namespace {

struct Avx512 {
  static constexpr size_t kLanes = 16, kGroup = 4, kRows = 6;
  static constexpr int32_t kValueOffset = 0;
  using Value = uint8_t;
  using Ints = __m512i;

  static Ints load(const uint8_t* from) { return _mm512_load_si512(from); }
  static void store(uint8_t* to, Ints value) { _mm512_store_si512(to, value); }
  static void store(float* to, __m512 value) { _mm512_store_ps(to, value); }
  static Ints zero_ints() { return _mm512_setzero_si512(); }
  static Ints ones() { return _mm512_set1_epi8(1); }
  static Ints broadcast(int32_t value) { return _mm512_set1_epi32(value); }
  static Ints sub(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
  static Ints mul(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
  static Ints dot(Ints sum, Ints values, Ints codes) { return _mm512_dpbusd_epi32(sum, values, codes); }

  // Multiplies a group of a row's 16 values by four vectors of codes.
  using Values = const uint8_t*;
  static Values values(const uint8_t* from) { return from; }
  template <size_t Group>
  static void dot_group(Ints* sums, Values values, const Ints* codes) {
    dot_broadcast<Avx512, Group>(sums, values, codes);
  }

  static void transpose(const uint8_t* base, size_t stride, Ints* to) { transpose_groups(base, stride, to); }

  static __m512 affine(Ints products, float scale, const float* scales, const float* bias) {
    const __m512 both = _mm512_mul_ps(_mm512_set1_ps(scale), _mm512_load_ps(scales));
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), both, _mm512_load_ps(bias));
  }

  // Widens [low, high] to contain x. Returns whether x and high - low are finite.
  static bool range(const float* x, size_t count, float* low, float* high) {
    __m512 least = _mm512_set1_ps(*low), most = _mm512_set1_ps(*high);
    __mmask16 ordered = 0xffff;
    for (size_t i = 0; i < count; i += kLanes) {
      const __mmask16 there = mask(count - i);
      const __m512 value = _mm512_maskz_loadu_ps(there, x + i);
      least = _mm512_min_ps(least, value);
      most = _mm512_max_ps(most, value);
      ordered &= _mm512_cmp_ps_mask(value, value, _CMP_ORD_Q);
    }
    *low = _mm512_reduce_min_ps(least);
    *high = _mm512_reduce_max_ps(most);
    return ordered == 0xffff && *high - *low <= 3.402823466e38f;
  }

  static void quantize(const float* x, size_t count, float inverse, float zero, uint8_t* to) {
    const __m512 factor = _mm512_set1_ps(inverse), offset = _mm512_set1_ps(zero);
    for (size_t i = 0; i < count; i += kLanes) {
      const __mmask16 there = mask(count - i);
      const __m512 value =
          _mm512_add_ps(_mm512_roundscale_ps(_mm512_mul_ps(_mm512_maskz_loadu_ps(there, x + i), factor), 0), offset);
      const Ints rounded = _mm512_max_epi32(_mm512_cvtps_epi32(value), _mm512_setzero_si512());
      _mm_mask_storeu_epi8(to + i, there, _mm512_cvtusepi32_epi8(rounded));
    }
  }

  // Returns the mask of the first `left` lanes, or of all lanes.
  static __mmask16 mask(size_t left) { return static_cast<__mmask16>(left < kLanes ? (1u << left) - 1 : 0xffff); }
};

}  // namespace
}  // namespace blip2rt
