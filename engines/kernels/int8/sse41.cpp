// The int8 kernel in SSE4.1, for processors without AVX2. It widens to 16 bits as AVX2 does, see avx2.h.
#if defined(__x86_64__)
#include "kernels/target.h"

BLIP2RT_TARGET("sse4.1")

#include <immintrin.h>

#include "kernels/int8/vectors.h"

namespace blip2rt {
namespace {

struct Sse41 : Int8Vectors<Sse41, FourLanes> {
  static constexpr size_t kGroup = 2, kRows = 3;
  using Value = int16_t;

  static Ints ones() { return broadcast(0x10001); }
  static Ints dot(Ints sum, Ints values, Ints codes) {
    sum += reinterpret_cast<Ints>(_mm_madd_epi16(reinterpret_cast<__m128i>(values), reinterpret_cast<__m128i>(codes)));
    asm("" : "+x"(sum));  // otherwise GCC hoists the products and runs out of registers
    return sum;
  }
  static Ints round(const float* x, float inverse) {
    return reinterpret_cast<Ints>(_mm_cvtps_epi32(_mm_mul_ps(_mm_loadu_ps(x), _mm_set1_ps(inverse))));
  }
  // Of every four: the first number, the third, the second and the fourth.
  static void store_values(const Ints* rounded, int16_t* to) {
    const __m128i words = _mm_packs_epi32(reinterpret_cast<__m128i>(rounded[0]), reinterpret_cast<__m128i>(rounded[1]));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_shufflehi_epi16(_mm_shufflelo_epi16(words, 0xd8), 0xd8));
  }
};

}  // namespace

extern const Int8Kernel kInt8Sse41 = kernel<Sse41>("sse41");

}  // namespace blip2rt
BLIP2RT_TARGET_END
#endif
