// The resizing passes in AVX2.
#if defined(__x86_64__)
#include "kernels/target.h"

BLIP2RT_TARGET("avx2,fma")

#include <immintrin.h>

#include <cstring>

#include "kernels/resize/passes.h"

namespace blip2rt {
namespace {

struct Avx2 {
  static constexpr size_t kPixels = 4, kPackedWeights = 16;
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

  // The 16-bit product adds two pixels. A weight is 65536 times its upper half plus its signed lower half.
  static void pack(const int32_t* weights, int32_t* to) {
    for (size_t i = 0; i < kPixels; i += 2) {
      const auto pair = [](int32_t first, int32_t second) {
        return static_cast<int32_t>((static_cast<uint32_t>(first) & 0xFFFFU) | static_cast<uint32_t>(second) << 16);
      };
      const auto upper = [](int32_t weight) { return (weight + (1 << 15)) >> 16; };
      for (size_t number = 0; number < 4; ++number, ++to) {
        to[0] = pair(weights[i], weights[i + 1]);
        to[kPackedWeights / 2] = pair(upper(weights[i]), upper(weights[i + 1]));
      }
    }
  }

  static Sums no_sums() { return {zero(), zero()}; }
  static Weights weights(const int32_t* packed) { return {load(packed), load(packed + kPackedWeights / 2)}; }

  static void add_products(Sums& sums, const uint8_t* bytes, const Weights& weights) {
    const Ints pixels = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
    const Ints order = _mm256_setr_epi8(0, -1, 4, -1, 1, -1, 5, -1, 2, -1, 6, -1, 3, -1, 7, -1,  //
                                        8, -1, 12, -1, 9, -1, 13, -1, 10, -1, 14, -1, 11, -1, 15, -1);
    const Ints values = _mm256_shuffle_epi8(pixels, order);
    sums.low = _mm256_add_epi32(sums.low, _mm256_madd_epi16(values, weights.low));
    sums.high = _mm256_add_epi32(sums.high, _mm256_madd_epi16(values, weights.high));
  }

  // Rounds four sums to bytes.
  static void store_four(uint8_t* to, __m128i sums) {
    const __m128i half = _mm_set1_epi32(1 << (ResizeKernel::kFractionBits - 1));
    const __m128i four = _mm_srai_epi32(_mm_add_epi32(sums, half), ResizeKernel::kFractionBits);
    const __m128i words = _mm_packs_epi32(four, four);
    const int32_t bytes = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
    std::memcpy(to, &bytes, sizeof bytes);
  }

  static void store_pixel(uint8_t* to, const Sums& sums) {
    const Ints both = _mm256_add_epi32(sums.low, _mm256_slli_epi32(sums.high, 16));
    store_four(to, _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1)));
  }

  static void store(uint8_t* to, Ints sums) {
    store_four(to, _mm256_castsi256_si128(sums));
    store_four(to + 4, _mm256_extracti128_si256(sums, 1));
  }
};

}  // namespace

extern const ResizeKernel kResizeAvx2 = kernel<Avx2>("avx2");

}  // namespace blip2rt
BLIP2RT_TARGET_END
#endif
