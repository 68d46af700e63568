// The AVX-512 VNNI vectors for tile.h: 64 outputs per tile. Include it after BLIP2RT_TARGET.
#pragma once

#include <immintrin.h>

#include "kernels/int8/vectors.h"
#include "kernels/lanes_avx512.h"

namespace blip2rt {
namespace {

struct Avx512 : Int8Vectors<Avx512, SixteenLanes> {
  static constexpr size_t kGroup = 4, kRows = 6;
  using Value = uint8_t;

  static Ints ones() { return _mm512_set1_epi8(1); }
  static Ints dot(Ints sum, Ints values, Ints codes) { return _mm512_dpbusd_epi32(sum, values, codes); }
  static void transpose(const uint8_t* base, size_t stride, Ints* to) { SixteenLanes::transpose(base, stride, to); }
  static Ints round(const float* x, float inverse) {
    return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), _mm512_set1_ps(inverse)));
  }
  static void store_values(const Ints* rounded, uint8_t* to) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(*rounded));
  }

  // Returns the mask of the first `left` lanes, or of all lanes.
  static __mmask16 mask(size_t left) { return static_cast<__mmask16>(left < kLanes ? (1u << left) - 1 : 0xffff); }
};

}  // namespace
}  // namespace blip2rt
