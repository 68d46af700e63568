// The vectors of int8_tile.h in AVX-512 with VNNI: 64 outputs at once. Included behind the target pragma of the file
// that uses them.
#pragma once

#include <immintrin.h>

#include "int8_tile.h"

namespace blip2rt {
namespace {

struct Avx512 {
  static constexpr size_t kLanes = 16, kRows = 6, kDepth = kGroup;
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
  static Ints four_of(const uint8_t* values) {
    int four;
    std::memcpy(&four, values, sizeof four);
    return _mm512_set1_epi32(four);
  }

  // 4 rows of 64 -> to[v]: of each 16 of a quarter of the columns the fours.
  static void interleave(const int8_t* const* rows, Ints* to) {
    const auto row = [&](size_t i) { return _mm512_loadu_si512(rows[i]); };
    const Ints low01 = _mm512_unpacklo_epi8(row(0), row(1)), high01 = _mm512_unpackhi_epi8(row(0), row(1));
    const Ints low23 = _mm512_unpacklo_epi8(row(2), row(3)), high23 = _mm512_unpackhi_epi8(row(2), row(3));
    to[0] = _mm512_unpacklo_epi16(low01, low23);
    to[1] = _mm512_unpackhi_epi16(low01, low23);
    to[2] = _mm512_unpacklo_epi16(high01, high23);
    to[3] = _mm512_unpackhi_epi16(high01, high23);
  }

  // What `interleave` did to the outputs, undone: quarter q of vector v is quarter v of output vector q.
  static void in_order(Ints* v) {
    const Ints a = _mm512_shuffle_i32x4(v[0], v[1], 0x44), b = _mm512_shuffle_i32x4(v[0], v[1], 0xee);
    const Ints c = _mm512_shuffle_i32x4(v[2], v[3], 0x44), d = _mm512_shuffle_i32x4(v[2], v[3], 0xee);
    v[0] = _mm512_shuffle_i32x4(a, c, 0x88);
    v[1] = _mm512_shuffle_i32x4(a, c, 0xdd);
    v[2] = _mm512_shuffle_i32x4(b, d, 0x88);
    v[3] = _mm512_shuffle_i32x4(b, d, 0xdd);
  }

  static __m512 affine(Ints products, float scale, const float* scales, const float* bias) {
    const __m512 both = _mm512_mul_ps(_mm512_set1_ps(scale), _mm512_load_ps(scales));
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), both, _mm512_load_ps(bias));
  }

  // Widens [low, high] to what is in x; whether all of it and the difference are finite.
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

 private:
  static __mmask16 mask(size_t left) { return static_cast<__mmask16>(left < kLanes ? (1u << left) - 1 : 0xffff); }
};

}  // namespace
}  // namespace blip2rt
