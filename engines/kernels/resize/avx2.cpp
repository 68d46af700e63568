// The arithmetic of kernel.h in AVX2: two pixels side by side. Knows instructions only.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#include <immintrin.h>

#include "kernels/resize/tile.h"
#include "kernels/resize/x86.h"

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

  static void store_pixel(uint8_t* to, Ints sums) {
    x86::store_four(to, _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1)));
  }

  static void store(uint8_t* to, Ints sums) {
    x86::store_four(to, _mm256_castsi256_si128(sums));
    x86::store_four(to + 4, _mm256_extracti128_si256(sums, 1));
  }
};

}  // namespace

extern const ResizeKernel kResizeAvx2 = {"avx2", Avx2::kPixels, across<Avx2>, down<Avx2>};

}  // namespace blip2rt
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
