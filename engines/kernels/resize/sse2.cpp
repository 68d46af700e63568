// The arithmetic of kernel.h in SSE2, which every x86-64 has. Knows instructions only.
#if defined(__x86_64__)
#include <emmintrin.h>

#include <cstring>

#include "kernels/resize/tile.h"
#include "kernels/resize/x86.h"

namespace blip2rt {
namespace {

struct Sse2 {
  using Ints = __m128i;

  static Ints zero() { return _mm_setzero_si128(); }
  static Ints load(const int32_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }
  static Ints broadcast(int32_t value) { return _mm_set1_epi32(value); }

  // There is no product of 32 bits, but one of 16. A weight is 65536 times its upper half, plus its lower half with a
  // sign.
  static Ints add_product(Ints sum, const uint8_t* bytes, Ints weight) {
    int32_t pixel;
    std::memcpy(&pixel, bytes, sizeof pixel);
    const Ints values = _mm_unpacklo_epi16(_mm_unpacklo_epi8(_mm_cvtsi32_si128(pixel), zero()), zero());
    const Ints upper = _mm_srli_epi32(_mm_add_epi32(weight, _mm_set1_epi32(1 << 15)), 16);
    const Ints products = _mm_slli_epi32(_mm_madd_epi16(values, upper), 16);
    return _mm_add_epi32(sum, _mm_add_epi32(products, _mm_madd_epi16(values, weight)));
  }

  static void store_pixel(uint8_t* to, Ints sums) { x86::store_four(to, sums); }
  static void store(uint8_t* to, Ints sums) { store_pixel(to, sums); }
};

}  // namespace

extern const ResizeKernel kResizeSse2 = kernel<PixelByPixel<Sse2>>("sse2");

}  // namespace blip2rt
#endif
