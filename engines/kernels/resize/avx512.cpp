// The arithmetic of kernel.h with AVX-512's instruction that adds four products of bytes. Knows instructions only.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))), \
                             apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#endif
#include "kernels/resize/avx2.h"

namespace blip2rt {
namespace {

// Registers have AVX2's 256 bits: windows are short. There are twice as many of them.
struct Avx512 : Avx2 {
  static constexpr size_t kPixels = 8, kPacked = 24;
  struct Sums {
    Ints first, second, third;
  };
  using Weights = Sums;

  // A weight is its first byte with a sign, plus 256 times its second, plus 65536 times its third.
  static void pack(const int32_t* weights, int32_t* to) {
    for (size_t byte = 0; byte < 3; ++byte) {
      for (size_t pixel = 0; pixel < kPixels; pixel += 4) {
        uint32_t four = 0;
        for (size_t i = 0; i < 4; ++i) {
          int32_t rest = weights[pixel + i];
          for (size_t lower = 0; lower < byte; ++lower) rest = (rest + 128) >> 8;
          four |= (static_cast<uint32_t>(rest) & 0xFFU) << (8 * i);
        }
        for (size_t number = 0; number < 4; ++number) *to++ = static_cast<int32_t>(four);
      }
    }
  }

  static Sums no_sums() { return {zero(), zero(), zero()}; }
  static Weights weights(const int32_t* packed) { return {load(packed), load(packed + 8), load(packed + 16)}; }

  static void add_products(Sums& sums, const uint8_t* bytes, const Weights& weights) {
    const Ints order = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,  //
                                        0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const Ints values = _mm256_shuffle_epi8(load(reinterpret_cast<const int32_t*>(bytes)), order);
    sums.first = _mm256_dpbusd_epi32(sums.first, values, weights.first);
    sums.second = _mm256_dpbusd_epi32(sums.second, values, weights.second);
    sums.third = _mm256_dpbusd_epi32(sums.third, values, weights.third);
  }

  static void store_pixel(uint8_t* to, const Sums& sums) {
    const Ints upper = _mm256_add_epi32(sums.second, _mm256_slli_epi32(sums.third, 8));
    store_halves(to, _mm256_add_epi32(sums.first, _mm256_slli_epi32(upper, 8)));
  }
};

}  // namespace

extern const ResizeKernel kResizeAvx512 = kernel<Avx512>("avx512");

}  // namespace blip2rt
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
