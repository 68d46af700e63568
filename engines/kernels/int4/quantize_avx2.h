// Quantizes activations to int8 for the AVX2 and AVX-512 kernels. Include it after BLIP2RT_TARGET.
#pragma once

#include "kernels/int4/vectors.h"
#include "kernels/lanes_avx2.h"

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

struct Eight : Vectors<EightLanes> {
  static int total(Numbers numbers) {
    const auto value = reinterpret_cast<Ints>(numbers);
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(value), _mm256_extracti128_si256(value, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
  }
  static void store_lowest(const Numbers* eight, int8_t* to) {
    // Selects the lowest byte of each lane: lanes 0 and 2 of a half go to its bytes 0 and 1, lanes 1 and 3 to bytes 4
    // and 5. Each half is zero where the other has bytes.
    const Ints order = _mm256_setr_epi8(0, 8, -1, -1, 4, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                        -1, -1, 0, 8, -1, -1, 4, 12, -1, -1, -1, -1, -1, -1, -1, -1);
    const Ints bytes = _mm256_shuffle_epi8(reinterpret_cast<Ints>(*eight), order);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to),
                     _mm_or_si128(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
  }
};

}  // namespace x86
}  // namespace
}  // namespace blip2rt
