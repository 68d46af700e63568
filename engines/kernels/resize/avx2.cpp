// The arithmetic of kernel.h in AVX2: two pixels side by side. Knows instructions only.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#include <immintrin.h>

#include <cstring>

#include "kernels/resize/tile.h"

namespace blip2rt {
namespace {

struct Avx2 {
  static constexpr size_t kPixels = 2;
  using Ints = __m256i;

  static Ints zero() { return _mm256_setzero_si256(); }
  static Ints load(const int32_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
  static Ints broadcast(int32_t value) { return _mm256_set1_epi32(value); }

  static Ints add_product(Ints sum, const uint8_t* bytes, Ints weight) {
    const Ints values = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
    return _mm256_add_epi32(sum, _mm256_mullo_epi32(values, weight));
  }

  static __m128i rounded(__m128i sums) {
    const __m128i half = _mm_set1_epi32(1 << (ResizeKernel::kFraction - 1));
    return _mm_srai_epi32(_mm_add_epi32(sums, half), ResizeKernel::kFraction);
  }

  static void store_pixel(uint8_t* to, Ints sums) {
    const __m128i four = rounded(_mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1)));
    const __m128i words = _mm_packs_epi32(four, four);
    const int32_t pixel = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
    std::memcpy(to, &pixel, sizeof pixel);
  }

  static void store(uint8_t* to, Ints sums) {
    const __m128i words =
        _mm_packs_epi32(rounded(_mm256_castsi256_si128(sums)), rounded(_mm256_extracti128_si256(sums, 1)));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(words, words));
  }
};

}  // namespace

extern const ResizeKernel kResizeAvx2 = {"avx2", Avx2::kPixels, across<Avx2>, down<Avx2>};

}  // namespace blip2rt
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
