// The int8 kernel in NEON with the Armv8.2 dot product.
#if defined(__aarch64__)
#include "kernels/target.h"

BLIP2RT_TARGET_DOT_PRODUCT

#include "kernels/int8/neon.h"

namespace blip2rt {
namespace {

struct DotProduct : Neon {
  static constexpr size_t kGroup = 4, kRows = 5;
  static constexpr int32_t kValueOffset = 128;
  using Value = uint8_t;

  static Ints ones() { return broadcast(0x01010101); }
  static Ints dot(Ints sum, Ints values, Ints codes) {
    return vdotq_s32(sum, vreinterpretq_s8_s32(values), vreinterpretq_s8_s32(codes));
  }
  // Multiplies a group of a row's 16 values by four vectors of codes; the instruction selects the group.
  using Values = int8x16_t;
  static Values values(const uint8_t* from) { return vreinterpretq_s8_u8(vld1q_u8(from)); }
  template <size_t Group>
  static void dot_group(Ints* sums, Values values, const Ints* codes) {
    for (size_t v = 0; v < kTileVectors; ++v) {
      sums[v] = vdotq_laneq_s32(sums[v], vreinterpretq_s8_s32(codes[v]), values, Group);
    }
  }
  static void transpose(const uint8_t* base, size_t stride, Ints* to) { FourLanes::transpose(base, stride, to); }
};

}  // namespace

extern const Int8Kernel kInt8DotProduct = kernel<DotProduct>("dotprod");

}  // namespace blip2rt
BLIP2RT_TARGET_END
#endif
