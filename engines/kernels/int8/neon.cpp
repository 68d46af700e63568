// The int8 kernel in NEON with the Armv8.2 dot product: 16 outputs per tile.
#if defined(__aarch64__)
#include "kernels/target.h"

BLIP2RT_TARGET_DOT_PRODUCT

#include <arm_neon.h>

#include "kernels/int8/tile.h"
#include "kernels/transpose_neon.h"

namespace blip2rt {
namespace {

struct Neon {
  static constexpr size_t kLanes = 4, kGroup = 4, kRows = 5;
  static constexpr int32_t kValueOffset = 128;
  using Value = uint8_t;
  using Ints = int32x4_t;
  using Floats = float32x4_t;

  static Ints load(const uint8_t* from) { return vreinterpretq_s32_u8(vld1q_u8(from)); }
  static void store(uint8_t* to, Ints value) { vst1q_u8(to, vreinterpretq_u8_s32(value)); }
  static void store(float* to, Floats value) { vst1q_f32(to, value); }
  static Ints zero_ints() { return vdupq_n_s32(0); }
  static Ints ones() { return vreinterpretq_s32_s8(vdupq_n_s8(1)); }
  static Ints broadcast(int32_t value) { return vdupq_n_s32(value); }
  static Ints sub(Ints a, Ints b) { return vsubq_s32(a, b); }
  static Ints mul(Ints a, Ints b) { return vmulq_s32(a, b); }
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

  static void transpose(const uint8_t* base, size_t stride, Ints* to) { transpose_groups(base, stride, to); }

  static Floats affine(Ints products, float scale, const float* scales, const float* bias) {
    return vfmaq_f32(vld1q_f32(bias), vcvtq_f32_s32(products), vmulq_n_f32(vld1q_f32(scales), scale));
  }

  // Widens [low, high] to contain x. Returns whether x and high - low are finite.
  static bool range(const float* x, size_t count, float* low, float* high) {
    Floats least = vdupq_n_f32(*low), most = vdupq_n_f32(*high);
    uint32x4_t ordered = vdupq_n_u32(~0u);
    const auto widen = [&](Floats value) {
      least = vminnmq_f32(least, value);
      most = vmaxnmq_f32(most, value);
      ordered = vandq_u32(ordered, vceqq_f32(value, value));
    };
    size_t i = 0;
    for (; i + kLanes <= count; i += kLanes) widen(vld1q_f32(x + i));
    for (; i < count; ++i) widen(vdupq_n_f32(x[i]));
    *low = vminnmvq_f32(least);
    *high = vmaxnmvq_f32(most);
    return vminvq_u32(ordered) != 0 && *high - *low <= 3.402823466e38f;
  }

  static void quantize(const float* x, size_t count, float inverse, float zero, uint8_t* to) {
    const Floats factor = vdupq_n_f32(inverse);
    const Ints offset = vdupq_n_s32(static_cast<int32_t>(zero));
    const auto four = [&](const float* from) {
      return vqmovun_s32(vaddq_s32(vcvtnq_s32_f32(vmulq_f32(vld1q_f32(from), factor)), offset));
    };
    const auto eight = [&](const float* from) {
      const uint8x8_t rounded = vqmovn_u16(vcombine_u16(four(from), four(from + kLanes)));
      return veor_u8(rounded, vdup_n_u8(kValueOffset));  // minus kValueOffset, as int8
    };
    size_t i = 0;
    for (; i + 2 * kLanes <= count; i += 2 * kLanes) vst1_u8(to + i, eight(x + i));
    if (i == count) return;
    float left[2 * kLanes] = {};
    uint8_t bytes[2 * kLanes];
    std::memcpy(left, x + i, (count - i) * sizeof(float));
    vst1_u8(bytes, eight(left));
    std::memcpy(to + i, bytes, count - i);
  }
};

}  // namespace

extern const Int8Kernel kInt8Neon = kernel<Neon>("neon");

}  // namespace blip2rt
BLIP2RT_TARGET_END
#endif
