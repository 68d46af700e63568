// Vectors of 16 lanes in AVX-512. Include it after BLIP2RT_TARGET.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace blip2rt {
namespace {

struct SixteenLanes {
  using Ints = __m512i;
  using Floats = __m512;

  // Transposes 16 rows of 16 bytes: vector to[j] gets bytes 4j to 4j + 3 of each row. Rows r, r + 4, ... share a
  // register, whose quarters are transposed as 4 x 4.
  static void transpose(const uint8_t* base, size_t stride, Ints* to) {
    const uint8_t* groups[4];
    for (size_t g = 0; g < 4; ++g) {
      groups[g] = base + 4 * g * stride;
      asm("" : "+r"(groups[g]));  // or the compiler keeps a pointer to each row, and moves all of them for every block
    }
    __m512i rows[4];
    for (size_t r = 0; r < 4; ++r) {
      const auto part = [&](size_t group) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(groups[group] + r * stride));
      };
      const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(part(0)), part(1), 1);
      const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(part(2)), part(3), 1);
      rows[r] = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    }
    const __m512i a = _mm512_unpacklo_epi32(rows[0], rows[1]), b = _mm512_unpacklo_epi32(rows[2], rows[3]);
    const __m512i c = _mm512_unpackhi_epi32(rows[0], rows[1]), d = _mm512_unpackhi_epi32(rows[2], rows[3]);
    to[0] = _mm512_unpacklo_epi64(a, b);
    to[1] = _mm512_unpackhi_epi64(a, b);
    to[2] = _mm512_unpacklo_epi64(c, d);
    to[3] = _mm512_unpackhi_epi64(c, d);
  }
};

}  // namespace
}  // namespace blip2rt
