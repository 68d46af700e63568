// The AVX2 vectors for tile.h: 32 outputs per tile. Weights and activations are widened to 16 bits, because the
// instruction for bytes sums two products in 16 bits, which would overflow. Include it after BLIP2RT_TARGET.
#pragma once

#include <immintrin.h>

#include "kernels/int8/vectors.h"
#include "kernels/lanes_avx2.h"

namespace blip2rt {
namespace {

struct Avx2 : Int8Vectors<Avx2, EightLanes> {
  static constexpr size_t kGroup = 2, kRows = 3;
  using Value = int16_t;

  static Ints ones() { return _mm256_set1_epi16(1); }
  static Ints dot(Ints sum, Ints values, Ints codes) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(values, codes));
    asm("" : "+x"(sum));  // otherwise GCC hoists the products and runs out of registers
    return sum;
  }
  static void store_values(const Ints* rounded, int16_t* to) {
    // The lower half of each lane: the first number, the third, the second and the fourth.
    const Ints order = _mm256_setr_epi8(0, 1, 8, 9, 4, 5, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                        0, 1, 8, 9, 4, 5, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1);
    const Ints halves = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(*rounded, order), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(halves));
  }
  static void store_values(const Ints* rounded, uint8_t* to) {
    const __m128i low = _mm256_castsi256_si128(*rounded), high = _mm256_extracti128_si256(*rounded, 1);
    const __m128i words = _mm_packs_epi32(low, high);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(words, words));
  }
};

}  // namespace
}  // namespace blip2rt
