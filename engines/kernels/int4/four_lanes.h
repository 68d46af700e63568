// What the vectors of SSE4.1 and NEON for tile.h share: 4 outputs per vector. Include it after BLIP2RT_TARGET.
#pragma once

#include "kernels/int4/few_rows.h"
#include "kernels/vectors.h"

namespace blip2rt {
namespace {

// V adds products, and rounding.
template <class V>
struct FourLanes : Vectors {
  static constexpr bool kStoresUnpacked = true, kUnpacksPairs = false;

  static void transpose(const uint8_t* base, size_t stride, Ints* to) { transpose_groups(base, stride, to); }
  static Floats zero() { return Floats{}; }
  static Floats mul(Floats a, Floats b) { return a * b; }
  static Floats mul_add(Floats a, Floats b, Floats c) { return a * b + c; }
  static Floats mul_sub(Floats a, Floats b, Floats c) { return c - a * b; }
  static Floats add(Floats a, Floats b) { return a + b; }
  static Ints high_half(Ints pairs) { return reinterpret_cast<Ints>(reinterpret_cast<Words>(pairs) >> 16); }
  static Ints low_nibble_of_lane(Ints value) { return value & 15; }
  static Ints next_nibble_of_lane(Ints value) { return reinterpret_cast<Ints>(reinterpret_cast<Words>(value) >> 4); }
  static Ints low_nibbles(Ints value) { return value & 0x0f0f0f0f; }
  static Ints high_nibbles(Ints value) { return reinterpret_cast<Ints>(reinterpret_cast<Bytes>(value) >> 4); }
  static Ints join(Ints high, Ints low) { return (high << 8) + low; }
  static Ints no_products() { return Ints{}; }
  static float sum(Floats value) { return (value[0] + value[2]) + (value[1] + value[3]); }

  static Floats load_nibbles(const uint8_t* from) {
    uint16_t four;
    std::memcpy(&four, from, sizeof four);
    return to_float((four + Ints{}) & Ints{15, 15 << 4, 15 << 8, 15 << 12}) * Floats{1, 0x1p-4f, 0x1p-8f, 0x1p-12f};
  }
  template <size_t B>
  static Floats spread(const float* from) {
    static_assert(B == 1, "a register holds no more than a block");
    return broadcast(*from);
  }

  // Writes x * inverse, rounded, with the even numbers of every 8 before the odd ones. Returns the sum. With `low`, 16
  // bits: 256 * to + low.
  static int quantize(const float* x, size_t count, float inverse, int8_t* to, int8_t* low) {
    Ints sum = {};
    for (size_t i = 0; i < count; i += 8) {
      Ints first = V::round(x + i, inverse), second = V::round(x + i + 4, inverse);
      sum += first + second;
      if (low != nullptr) {
        V::store_lowest(first, second, low + i);
        first = (first + 128) >> 8;
        second = (second + 128) >> 8;
      }
      V::store_lowest(first, second, to + i);
    }
    return sum[0] + sum[1] + sum[2] + sum[3];
  }
};

}  // namespace
}  // namespace blip2rt
