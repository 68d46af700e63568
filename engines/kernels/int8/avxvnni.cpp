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
  static void transpose(const uint8_t* base, size_t stride, Ints* to) { EightLanes::transpose(base, stride, to); }
};

}  // namespace

extern const Int8Kernel kInt8AvxVnni = kernel<AvxVnni>("avxvnni");

}  // namespace blip2rt
BLIP2RT_TARGET_END
#endif
