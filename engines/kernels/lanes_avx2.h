// Vectors of 8 lanes in AVX2. Include it after BLIP2RT_TARGET.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace blip2rt {
namespace {

struct EightLanes {
  using Ints = __m256i;
  using Floats = __m256;

  static Ints round(const float* x, float inverse) {
    return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), _mm256_set1_ps(inverse)));
  }

  // Transposes 8 rows of 16 bytes: vector to[j] gets bytes 4j to 4j + 3 of each row. Rows r and r + 4 share a register,
  // whose halves are transposed as 4 x 4.
  static void transpose(const uint8_t* base, size_t stride, Ints* to) {
    __m256i rows[4];
    for (size_t r = 0; r < 4; ++r) {
      const auto part = [&](size_t group) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(base + (4 * group + r) * stride));
      };
      rows[r] = _mm256_inserti128_si256(_mm256_castsi128_si256(part(0)), part(1), 1);
    }
    const __m256i a = _mm256_unpacklo_epi32(rows[0], rows[1]), b = _mm256_unpacklo_epi32(rows[2], rows[3]);
    const __m256i c = _mm256_unpackhi_epi32(rows[0], rows[1]), d = _mm256_unpackhi_epi32(rows[2], rows[3]);
    to[0] = _mm256_unpacklo_epi64(a, b);
    to[1] = _mm256_unpackhi_epi64(a, b);
    to[2] = _mm256_unpacklo_epi64(c, d);
    to[3] = _mm256_unpackhi_epi64(c, d);
  }
};

}  // namespace
}  // namespace blip2rt
