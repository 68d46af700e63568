// The arithmetic of kernel.h in registers of 256 bits. A file includes this behind its target pragma.
#pragma once

#include <immintrin.h>

#include "kernels/resize/tile.h"
#include "kernels/resize/x86.h"

namespace blip2rt {
namespace {

struct Avx2 {
  static constexpr size_t kPixels = 4, kPacked = 16;
  using Ints = __m256i;
  struct Sums {
    Ints low, high;
  };
  using Weights = Sums;

  static Ints zero() { return _mm256_setzero_si256(); }
  static Ints load(const int32_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
  static Ints broadcast(int32_t value) { return _mm256_set1_epi32(value); }

  static Ints add_product(Ints sum, const uint8_t* bytes, Ints weight) {
    const Ints values = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
    return _mm256_add_epi32(sum, _mm256_mullo_epi32(values, weight));
  }

  // A product of 16 bits adds two pixels. A weight is 65536 times its upper half, plus its lower half with a sign.
  static void pack(const int32_t* weights, int32_t* to) {
    for (size_t i = 0; i < kPixels; i += 2) {
      const auto pair = [](int32_t first, int32_t second) {
        return static_cast<int32_t>((static_cast<uint32_t>(first) & 0xFFFFU) | static_cast<uint32_t>(second) << 16);
      };
      const auto upper = [](int32_t weight) { return (weight + (1 << 15)) >> 16; };
      for (size_t number = 0; number < 4; ++number, ++to) {
        to[0] = pair(weights[i], weights[i + 1]);
        to[kPacked / 2] = pair(upper(weights[i]), upper(weights[i + 1]));
      }
    }
  }

  static Sums no_sums() { return {zero(), zero()}; }
  static Weights weights(const int32_t* packed) { return {load(packed), load(packed + kPacked / 2)}; }

  static void add_products(Sums& sums, const uint8_t* bytes, const Weights& weights) {
    const Ints pixels = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
    const Ints order = _mm256_setr_epi8(0, -1, 4, -1, 1, -1, 5, -1, 2, -1, 6, -1, 3, -1, 7, -1,  //
                                        8, -1, 12, -1, 9, -1, 13, -1, 10, -1, 14, -1, 11, -1, 15, -1);
    const Ints values = _mm256_shuffle_epi8(pixels, order);
    sums.low = _mm256_add_epi32(sums.low, _mm256_madd_epi16(values, weights.low));
    sums.high = _mm256_add_epi32(sums.high, _mm256_madd_epi16(values, weights.high));
  }

  static void store_halves(uint8_t* to, Ints sums) {
    x86::store_four(to, _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1)));
  }

  static void store_pixel(uint8_t* to, const Sums& sums) {
    store_halves(to, _mm256_add_epi32(sums.low, _mm256_slli_epi32(sums.high, 16)));
  }

  static void store(uint8_t* to, Ints sums) {
    x86::store_four(to, _mm256_castsi256_si128(sums));
    x86::store_four(to + 4, _mm256_extracti128_si256(sums, 1));
  }
};

}  // namespace
}  // namespace blip2rt
