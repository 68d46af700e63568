// The int4 kernel in NEON with the Armv8.2 dot product.
#if defined(__aarch64__)
#include "kernels/target.h"

BLIP2RT_TARGET_DOT_PRODUCT

#include "kernels/int4/neon.h"

namespace blip2rt {
namespace {

struct DotProduct : Neon {
  using Part = Ints;

  static Part begin_piece(Ints sum) { return sum; }
  static Ints end_piece(Ints, Part part) { return part; }
  // Loads 16 values at once; the instruction selects four of them.
  template <size_t Index>
  static Part dot_four(Part part, Ints codes, const int8_t* values) {
    return vdotq_laneq_s32(part, vreinterpretq_s8_s32(codes), vld1q_s8(values + Index / 4 * 16), Index % 4);
  }
  static Ints dot_all(Ints sum, Ints low, Ints high, const int8_t* values) {
    sum = vdotq_s32(sum, vreinterpretq_s8_s32(low), vld1q_s8(values));
    return vdotq_s32(sum, vreinterpretq_s8_s32(high), vld1q_s8(values + sizeof(Ints)));
  }
};

}  // namespace

extern const Int4Kernel kInt4DotProduct = {"dotprod", DotProduct::kLanes, DotProduct::kTilesAtOnce,
                                           quantize<DotProduct>, multiply<DotProduct>};

}  // namespace blip2rt
BLIP2RT_TARGET_END
#endif
