// The int8 kernel in AVX-VNNI, which has one instruction for four products of bytes.
#if defined(__x86_64__)
#include "kernels/target.h"

BLIP2RT_TARGET("avx2,fma,avxvnni")

#include "kernels/int8/avx2.h"

namespace blip2rt {
namespace {

struct AvxVnni : Avx2 {
  static constexpr size_t kGroup = 4;
  using Value = uint8_t;

  static Ints ones() { return _mm256_set1_epi8(1); }
  static Ints dot(Ints sum, Ints values, Ints codes) { return _mm256_dpbusd_avx_epi32(sum, values, codes); }
  template <size_t Group>
  static void dot_group(Ints* sums, Values values, const Ints* codes) {
    dot_broadcast<AvxVnni, Group>(sums, values, codes);
  }
  static void transpose(const uint8_t* base, size_t stride, Ints* to) { transpose_groups(base, stride, to); }
  static void quantize(const float* x, size_t count, float inverse, float zero, uint8_t* to) {
    // The lowest byte of each lane.
    const Ints order = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                        0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    round_eights(x, count, inverse, zero, [&](size_t i, Ints rounded) {
      const Ints bytes = _mm256_shuffle_epi8(rounded, order);
      const __m128i eight = _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(to + i), eight);
    });
  }
};

}  // namespace

extern const Int8Kernel kInt8AvxVnni = kernel<AvxVnni>("avxvnni");

}  // namespace blip2rt
BLIP2RT_TARGET_END
#endif
