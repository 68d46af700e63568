// The products of matmul.h in AVX2 with AVX-VNNI: 32 outputs side by side. Knows instructions only.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avxvnni"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,avxvnni")
#endif
#include <immintrin.h>

#include "kernels/int8/tile.h"
#include "kernels/transpose_avx2.h"

namespace blip2rt {
namespace {

struct AvxVnni {
  static constexpr size_t kLanes = 8, kRows = 3;
  static constexpr int32_t kMiddle = 0;
  using Ints = __m256i;

  static Ints load(const uint8_t* from) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(from)); }
  static void store(uint8_t* to, Ints value) { _mm256_store_si256(reinterpret_cast<__m256i*>(to), value); }
  static void store(float* to, __m256 value) { _mm256_store_ps(to, value); }
  static Ints zero_ints() { return _mm256_setzero_si256(); }
  static Ints ones() { return _mm256_set1_epi8(1); }
  static Ints broadcast(int32_t value) { return _mm256_set1_epi32(value); }
  static Ints sub(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
  static Ints mul(Ints a, Ints b) { return _mm256_mullo_epi32(a, b); }
  static Ints dot(Ints sum, Ints values, Ints codes) { return _mm256_dpbusd_avx_epi32(sum, values, codes); }

  // 16 values of a row, and the group of them that is multiplied with four vectors of codes.
  using Values = const uint8_t*;
  static Values values(const uint8_t* from) { return from; }
  template <size_t Group>
  static void dot_group(Ints* sums, Values values, const Ints* codes) {
    dot_broadcast<AvxVnni, Group>(sums, values, codes);
  }

  static void transpose(const uint8_t* base, size_t stride, Ints* to) { fours_of(base, stride, to); }

  static __m256 affine(Ints products, float scale, const float* scales, const float* bias) {
    const __m256 both = _mm256_mul_ps(_mm256_set1_ps(scale), _mm256_load_ps(scales));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), both, _mm256_load_ps(bias));
  }

  // Widens [low, high] to hold x. Returns whether all of x and high - low are finite.
  static bool range(const float* x, size_t count, float* low, float* high) {
    __m256 least = _mm256_set1_ps(*low), most = _mm256_set1_ps(*high), disordered = _mm256_setzero_ps();
    const auto widen = [&](__m256 value) {
      least = _mm256_min_ps(least, value);
      most = _mm256_max_ps(most, value);
      disordered = _mm256_or_ps(disordered, _mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    };
    size_t i = 0;
    for (; i + kLanes <= count; i += kLanes) widen(_mm256_loadu_ps(x + i));
    for (; i < count; ++i) widen(_mm256_set1_ps(x[i]));
    alignas(32) float of_lanes[2][kLanes];
    _mm256_store_ps(of_lanes[0], least);
    _mm256_store_ps(of_lanes[1], most);
    for (size_t lane = 0; lane < kLanes; ++lane) {
      *low = of_lanes[0][lane] < *low ? of_lanes[0][lane] : *low;
      *high = of_lanes[1][lane] > *high ? of_lanes[1][lane] : *high;
    }
    return _mm256_movemask_ps(disordered) == 0 && *high - *low <= 3.402823466e38f;
  }

  static void quantize(const float* x, size_t count, float inverse, float zero, uint8_t* to) {
    const __m256 factor = _mm256_set1_ps(inverse), offset = _mm256_set1_ps(zero);
    // The lowest byte of every 32 bits.
    const Ints order = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                        0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const auto eight = [&](const float* from) {
      const __m256 value = _mm256_add_ps(_mm256_round_ps(_mm256_mul_ps(_mm256_loadu_ps(from), factor), 0), offset);
      const Ints rounded =
          _mm256_min_epi32(_mm256_max_epi32(_mm256_cvtps_epi32(value), _mm256_setzero_si256()), _mm256_set1_epi32(255));
      const Ints bytes = _mm256_shuffle_epi8(rounded, order);
      return _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
    };
    size_t i = 0;
    for (; i + kLanes <= count; i += kLanes) _mm_storel_epi64(reinterpret_cast<__m128i*>(to + i), eight(x + i));
    if (i == count) return;
    float left[kLanes] = {};
    uint8_t bytes[kLanes];
    std::memcpy(left, x + i, (count - i) * sizeof(float));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(bytes), eight(left));
    std::memcpy(to + i, bytes, count - i);
  }
};

}  // namespace

extern const Int8Kernel kInt8AvxVnni = kernel<AvxVnni>("avxvnni");

}  // namespace blip2rt
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
