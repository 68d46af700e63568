// The int4 kernel in NEON with the Armv8.2 dot product: 4 outputs per vector.
#if defined(__aarch64__)
#include "kernels/target.h"

BLIP2RT_TARGET_DOT_PRODUCT

#include <arm_neon.h>

#include "kernels/int4/few_rows.h"
#include "kernels/transpose_neon.h"

namespace blip2rt {
namespace {

struct Neon {
  static constexpr size_t kLanes = 4, kRows8Bit = 8, kRows16Bit = 4, kFewRows = 1;
  static constexpr size_t kTilesAtOnce = 1, kRowDivisor = 1;
  static constexpr bool kStoresUnpacked = true, kUnpacksPairs = false;
  using Ints = int32x4_t;
  using Floats = float32x4_t;

  static void transpose(const uint8_t* base, size_t stride, Ints* to) { transpose_groups(base, stride, to); }

  static Ints load(const void* from) { return vld1q_s32(static_cast<const int32_t*>(from)); }
  static void store(uint8_t* to, Ints value) { vst1q_s32(reinterpret_cast<int32_t*>(to), value); }
  static Floats load_floats(const float* from) { return vld1q_f32(from); }
  static void store(float* to, Floats value) { vst1q_f32(to, value); }
  static Floats zero() { return vdupq_n_f32(0); }
  static Floats broadcast(float value) { return vdupq_n_f32(value); }
  static Floats mul(Floats a, Floats b) { return vmulq_f32(a, b); }
  static Floats mul_add(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
  static Floats mul_sub(Floats a, Floats b, Floats c) { return vfmsq_f32(c, a, b); }  // c - a * b
  static Floats to_float(Ints value) { return vcvtq_f32_s32(value); }
  static Floats half(Ints pairs) { return vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(vreinterpretq_u32_s32(pairs)))); }
  static Ints high_half(Ints pairs) { return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(pairs), 16)); }
  static Ints low_nibble_of_lane(Ints value) { return vandq_s32(value, vdupq_n_s32(15)); }
  static Ints next_nibble_of_lane(Ints value) {
    return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(value), 4));
  }
  static Ints low_nibbles(Ints value) {
    return vreinterpretq_s32_u8(vandq_u8(vreinterpretq_u8_s32(value), vdupq_n_u8(15)));
  }
  static Ints high_nibbles(Ints value) { return vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(value), 4)); }
  static Ints join(Ints high, Ints low) { return vaddq_s32(vshlq_n_s32(high, 8), low); }
  static Ints no_products() { return vdupq_n_s32(0); }
  static Ints begin_piece(Ints sum) { return sum; }
  static Ints end_piece(Ints, Ints part) { return part; }
  // Loads 16 values at once; the instruction selects four of them.
  template <size_t Index>
  static Ints dot_four(Ints part, Ints codes, const int8_t* values) {
    return vdotq_laneq_s32(part, vreinterpretq_s8_s32(codes), vld1q_s8(values + Index / 4 * 16), Index % 4);
  }
  static Ints dot_all(Ints sum, Ints low, Ints high, const int8_t* values) {
    sum = vdotq_s32(sum, vreinterpretq_s8_s32(low), vld1q_s8(values));
    return vdotq_s32(sum, vreinterpretq_s8_s32(high), vld1q_s8(values + sizeof(Ints)));
  }
  static Floats load_halves(const uint16_t* from) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))); }
  static Floats load_nibbles(const uint8_t* from) {
    uint16_t four;
    std::memcpy(&four, from, sizeof four);
    const int32_t right[] = {0, -4, -8, -12};
    const Ints shifted = vreinterpretq_s32_u32(vshlq_u32(vdupq_n_u32(four), vld1q_s32(right)));
    return to_float(low_nibble_of_lane(shifted));
  }
  template <size_t B>
  static Floats spread(const float* from) {
    static_assert(B == 1, "a register holds no more than a block");
    return vdupq_n_f32(*from);
  }
  static Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }
  static float sum(Floats value) { return vaddvq_f32(value); }

  // Returns the largest magnitude of x, or NaN if x has a NaN. `count` is a multiple of 32.
  static float largest(const float* x, size_t count) {
    Floats result = vdupq_n_f32(0);
    for (size_t i = 0; i < count; i += 4) result = vmaxq_f32(result, vabsq_f32(vld1q_f32(x + i)));
    return vmaxvq_f32(result);
  }

  // Writes the even values of every 8 before the odd ones.
  static void store_lowest(Ints first, Ints second, int8_t* to) {
    vst1_s8(to, vmovn_s16(vcombine_s16(vmovn_s32(vuzp1q_s32(first, second)), vmovn_s32(vuzp2q_s32(first, second)))));
  }

  // Writes x * inverse, rounded, and returns the sum. With `low`, 16 bits: 256 * to + low.
  static int quantize(const float* x, size_t count, float inverse, int8_t* to, int8_t* low) {
    const Floats factor = vdupq_n_f32(inverse);
    Ints sum = vdupq_n_s32(0);
    for (size_t i = 0; i < count; i += 8) {
      Ints first = vcvtnq_s32_f32(vmulq_f32(vld1q_f32(x + i), factor));
      Ints second = vcvtnq_s32_f32(vmulq_f32(vld1q_f32(x + i + 4), factor));
      sum = vaddq_s32(sum, vaddq_s32(first, second));
      if (low != nullptr) {
        store_lowest(first, second, low + i);
        first = vshrq_n_s32(vaddq_s32(first, vdupq_n_s32(128)), 8);
        second = vshrq_n_s32(vaddq_s32(second, vdupq_n_s32(128)), 8);
      }
      store_lowest(first, second, to + i);
    }
    return vaddvq_s32(sum);
  }
};

}  // namespace

extern const Int4Kernel kInt4Neon = {"neon", Neon::kLanes, Neon::kTilesAtOnce, quantize<Neon>, multiply<Neon>};

}  // namespace blip2rt
BLIP2RT_TARGET_END
#endif
