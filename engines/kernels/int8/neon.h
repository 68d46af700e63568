// The NEON vectors for tile.h, for every aarch64 processor. Include it after BLIP2RT_TARGET.
#pragma once

#include <arm_neon.h>

#include "kernels/int8/vectors.h"

namespace blip2rt {
namespace {

struct Neon : Int8Vectors<Neon, FourLanes> {
  static constexpr size_t kGroup = 2, kRows = 4;
  using Value = int16_t;

  static Ints ones() { return broadcast(0x10001); }
  static Ints dot(Ints sum, Ints values, Ints codes) {
    const int16x8_t x = vreinterpretq_s16_s32(values), w = vreinterpretq_s16_s32(codes);
    return vmlal_high_s16(vmlal_s16(sum, vget_low_s16(x), vget_low_s16(w)), x, w);
  }

  // Multiplies a group of a row's 16 values by four vectors of codes; the instructions select a value.
  using Values = int16x8x2_t;
  static Values values(const uint8_t* from) {
    return {{vreinterpretq_s16_u8(vld1q_u8(from)), vreinterpretq_s16_u8(vld1q_u8(from + 16))}};
  }
  template <size_t Group>
  static void dot_group(Ints* sums, const Values& values, const Ints* codes) {
    constexpr int kLane = Group % 4 * 2;
    const int16x8_t x = values.val[Group / 4];
    for (size_t v = 0; v < kTileVectors; ++v) {
      const int16x8_t w = vreinterpretq_s16_s32(codes[v]);
      sums[v] = vmlal_high_laneq_s16(vmlal_laneq_s16(sums[v], vget_low_s16(w), x, kLane), w, x, kLane + 1);
    }
  }
  // A group is a weight of each output, then the next weight of each.
  static void transpose(const uint8_t* base, size_t stride, Ints* to) {
    Ints fours[4];
    FourLanes::transpose(base, stride, fours);
    const uint8x16_t order = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    for (size_t i = 0; i < 4; ++i) {
      const int8x16_t by_weight = vqtbl1q_s8(vreinterpretq_s8_s32(fours[i]), order);
      to[2 * i] = vreinterpretq_s32_s16(vmovl_s8(vget_low_s8(by_weight)));
      to[2 * i + 1] = vreinterpretq_s32_s16(vmovl_high_s8(by_weight));
    }
  }
  static Ints round(const float* x, float inverse) { return vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x), inverse)); }
  static void store_values(const Ints* rounded, int16_t* to) {
    vst1q_s16(to, vcombine_s16(vmovn_s32(rounded[0]), vmovn_s32(rounded[1])));
  }
  // Signed: less 128.
  static void store_values(const Ints* rounded, uint8_t* to) {
    const int16x8_t words = vcombine_s16(vmovn_s32(rounded[0]), vmovn_s32(rounded[1]));
    vst1_u8(to, veor_u8(vreinterpret_u8_s8(vmovn_s16(words)), vdup_n_u8(128)));
  }
};

}  // namespace
}  // namespace blip2rt
