// The resizing passes in NEON, which every aarch64 processor has.
#if defined(__aarch64__)
#include <arm_neon.h>

#include <cstring>

#include "kernels/resize/passes.h"

namespace blip2rt {
namespace {

struct Neon {
  using Ints = int32x4_t;

  static Ints zero() { return vdupq_n_s32(0); }
  static Ints load(const int32_t* from) { return vld1q_s32(from); }
  static Ints broadcast(int32_t value) { return vdupq_n_s32(value); }

  static Ints add_product(Ints sum, const uint8_t* bytes, Ints weight) {
    uint32_t pixel;
    std::memcpy(&pixel, bytes, sizeof pixel);
    const uint32x4_t values = vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(pixel))));
    return vmlaq_s32(sum, vreinterpretq_s32_u32(values), weight);
  }

  static void store_pixel(uint8_t* to, Ints sums) {
    const int16x4_t words = vqmovn_s32(vrshrq_n_s32(sums, ResizeKernel::kFractionBits));
    const uint8x8_t four = vqmovun_s16(vcombine_s16(words, words));
    const uint32_t pixel = vget_lane_u32(vreinterpret_u32_u8(four), 0);
    std::memcpy(to, &pixel, sizeof pixel);
  }

  static void store(uint8_t* to, Ints sums) { store_pixel(to, sums); }
};

}  // namespace

extern const ResizeKernel kResizeNeon = kernel<PixelByPixel<Neon>>("neon");

}  // namespace blip2rt
#endif
