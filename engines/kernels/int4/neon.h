// The NEON vectors for tile.h, for every aarch64 processor. Include it after BLIP2RT_TARGET.
#pragma once

#include <arm_neon.h>

#include "kernels/int4/vectors.h"

namespace blip2rt {
namespace {

struct Neon : FourOutputs<Neon> {
  static constexpr size_t kRows8Bit = 8, kRows16Bit = 4, kFewRows8Bit = 1, kFewRows16Bit = 1;
  static constexpr bool kUnrolls = true;
  static constexpr size_t kTilesAtOnce = 1, kRowDivisor = 1;
  // Eight sums of four products of each output in 16 bits, which hold 8 * 15 * 128.
  struct Part {
    int16x8_t low, high;
  };

  static Floats half(Ints pairs) { return load_halves(vmovn_u32(reinterpret_cast<uint32x4_t>(pairs))); }
  static Floats load_halves(const uint16_t* from) { return load_halves(vld1_u16(from)); }
  static Floats load_halves(uint16x4_t four) {
    return reinterpret_cast<Floats>(vcvt_f32_f16(vreinterpret_f16_u16(four)));
  }
  static Part begin_piece(Ints) { return {vdupq_n_s16(0), vdupq_n_s16(0)}; }
  static Ints end_piece(Ints sum, Part part) { return add_pairs(sum, vpaddq_s16(part.low, part.high)); }
  static Ints add_pairs(Ints sum, int16x8_t pairs) { return vpadalq_s16(sum, pairs); }
  // Loads 16 values at once, and selects four of them.
  template <size_t Index>
  static Part dot_four(Part part, Ints codes, const int8_t* values) {
    const int8x16_t bytes = vreinterpretq_s8_s32(codes);
    const int8x16_t four = vreinterpretq_s8_s32(vdupq_laneq_s32(load(values + Index / 4 * 16), Index % 4));
    return {vmlal_s8(part.low, vget_low_s8(bytes), vget_low_s8(four)), vmlal_high_s8(part.high, bytes, four)};
  }
  static Ints dot_all(Ints sum, Ints low, Ints high, const int8_t* values) {
    const int8x16_t x = vreinterpretq_s8_s32(low), y = vreinterpretq_s8_s32(high);
    const int8x16_t evens = vld1q_s8(values), odds = vld1q_s8(values + sizeof(Ints));
    int16x8_t pairs = vmull_s8(vget_low_s8(x), vget_low_s8(evens));
    pairs = vmlal_high_s8(pairs, x, evens);
    pairs = vmlal_s8(pairs, vget_low_s8(y), vget_low_s8(odds));
    return add_pairs(sum, vmlal_high_s8(pairs, y, odds));
  }
  static Ints round(const float* x, float inverse) { return vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x), inverse)); }
  static void store_lowest(const Ints* eight, int8_t* to) {
    const int16x4_t evens = vmovn_s32(vuzp1q_s32(eight[0], eight[1])), odds = vmovn_s32(vuzp2q_s32(eight[0], eight[1]));
    vst1_s8(to, vmovn_s16(vcombine_s16(evens, odds)));
  }
};

}  // namespace
}  // namespace blip2rt
