// The int8 kernel in SSE4.1, for processors without AVX2. It widens to 16 bits as AVX2 does, see avx2.h.
#if defined(__x86_64__)
#include "kernels/target.h"

BLIP2RT_TARGET("sse4.1")

#include <immintrin.h>

#include "kernels/int8/four_lanes.h"

namespace blip2rt {
namespace {

struct Sse41 : FourLanes<Sse41> {
  static constexpr size_t kGroup = 2, kRows = 3;
  static constexpr int32_t kValueOffset = 0;
  using Value = int16_t;

  static Ints ones() { return broadcast(0x10001); }
  static Ints dot(Ints sum, Ints values, Ints codes) {
    sum += reinterpret_cast<Ints>(_mm_madd_epi16(reinterpret_cast<__m128i>(values), reinterpret_cast<__m128i>(codes)));
    asm("" : "+x"(sum));  // otherwise GCC hoists the products and runs out of registers
    return sum;
  }
  using Values = const uint8_t*;
  static Values values(const uint8_t* from) { return from; }
  template <size_t Group>
  static void dot_group(Ints* sums, Values values, const Ints* codes) {
    dot_broadcast<Sse41, Group>(sums, values, codes);
  }
  static void transpose(const uint8_t* base, size_t stride, Ints* to) {
    Ints fours[4];
    transpose_groups(base, stride, fours);
    for (size_t i = 0; i < 4; ++i) {
      const auto four = reinterpret_cast<__m128i>(fours[i]);
      to[2 * i] = reinterpret_cast<Ints>(_mm_srai_epi16(_mm_slli_epi16(four, 8), 8));
      to[2 * i + 1] = reinterpret_cast<Ints>(_mm_srai_epi16(four, 8));
    }
  }
  static Ints round(const float* x, float inverse) {
    return reinterpret_cast<Ints>(_mm_cvtps_epi32(_mm_mul_ps(_mm_loadu_ps(x), _mm_set1_ps(inverse))));
  }
  // Of every four: the first number, the third, the second and the fourth.
  static void store_eight(Ints first, Ints second, int16_t* to) {
    const __m128i words = _mm_packs_epi32(reinterpret_cast<__m128i>(first), reinterpret_cast<__m128i>(second));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_shufflehi_epi16(_mm_shufflelo_epi16(words, 0xd8), 0xd8));
  }
};

}  // namespace

extern const Int8Kernel kInt8Sse41 = kernel<Sse41>("sse41");

}  // namespace blip2rt
BLIP2RT_TARGET_END
#endif
