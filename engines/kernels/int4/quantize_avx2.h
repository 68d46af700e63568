// Quantizes activations to int8 for the AVX2 and AVX-512 kernels. Include it after BLIP2RT_TARGET.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace blip2rt {
namespace {
namespace x86 {

// Returns values 4 * Index to 4 * Index + 3 as one integer.
template <size_t Index>
int four(const int8_t* values) {
  int result;
  std::memcpy(&result, values + 4 * Index, sizeof result);
  return result;
}

// Combines two halves, each zero where the other has bytes, and stores 8 bytes.
void store_lowest(__m256i bytes, int8_t* to) {
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to),
                   _mm_or_si128(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
}

// Writes x * inverse, rounded, with the even numbers of every 8 before the odd ones. Returns the sum. With `low`, 16
// bits: 256 * to + low.
int quantize(const float* x, size_t count, float inverse, int8_t* to, int8_t* low) {
  const __m256 factor = _mm256_set1_ps(inverse);
  // Selects the lowest byte of each lane: lanes 0 and 2 of a half go to its bytes 0 and 1, lanes 1 and 3 to bytes 4 and
  // 5.
  const __m256i order = _mm256_setr_epi8(0, 8, -1, -1, 4, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                         -1, -1, 0, 8, -1, -1, 4, 12, -1, -1, -1, -1, -1, -1, -1, -1);
  __m256i sum = _mm256_setzero_si256();
  for (size_t i = 0; i < count; i += 8) {
    __m256i rounded = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), factor));
    sum = _mm256_add_epi32(sum, rounded);
    if (low != nullptr) {
      store_lowest(_mm256_shuffle_epi8(rounded, order), low + i);
      rounded = _mm256_srai_epi32(_mm256_add_epi32(rounded, _mm256_set1_epi32(128)), 8);
    }
    store_lowest(_mm256_shuffle_epi8(rounded, order), to + i);
  }
  __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
}

}  // namespace x86
}  // namespace
}  // namespace blip2rt
