// What the vectors for tile.h share. Include it after BLIP2RT_TARGET.
#pragma once

#include "kernels/int4/few_rows.h"
#include "kernels/vectors.h"

namespace blip2rt {
namespace {

// The vectors of an instruction set derive from this.
template <class Lanes>
struct Int4Vectors : Vectors<Lanes> {
  using typename Vectors<Lanes>::Ints;
  using typename Vectors<Lanes>::Floats;
  using typename Vectors<Lanes>::Numbers;
  using typename Vectors<Lanes>::Words;
  using typename Vectors<Lanes>::Bytes;
  static constexpr bool kPairTilesForFewRows = true;  // multiply two tiles at once even for few rows
  static constexpr size_t kValueCopies = 1, kStreams = 1;
  static constexpr bool kWideValues = false;    // of 16 bits, in one plane
  static constexpr bool kUnpacksPairs = false;  // registers hold the codes of two tiles

  static Floats mul(Floats a, Floats b) { return a * b; }
  static Floats mul_add(Floats a, Floats b, Floats c) { return a * b + c; }
  static Floats mul_sub(Floats a, Floats b, Floats c) { return c - a * b; }
  static Ints high_half(Ints pairs) { return reinterpret_cast<Ints>(reinterpret_cast<Words>(pairs) >> 16); }
  static Ints low_nibble_of_lane(Ints value) { return reinterpret_cast<Ints>(reinterpret_cast<Words>(value) & 15); }
  static Ints next_nibble_of_lane(Ints value) { return reinterpret_cast<Ints>(reinterpret_cast<Words>(value) >> 4); }
  static Ints low_nibbles(Ints value) { return reinterpret_cast<Ints>(reinterpret_cast<Bytes>(value) & 15); }
  static Ints high_nibbles(Ints value) { return reinterpret_cast<Ints>(reinterpret_cast<Bytes>(value) >> 4); }
  static Ints join(Ints high, Ints low) {
    return reinterpret_cast<Ints>((reinterpret_cast<Numbers>(high) << 8) + reinterpret_cast<Numbers>(low));
  }
};

// Writes x * inverse, rounded, with the even numbers of every 8 before the odd ones. Returns the sum. With `low`, 16
// bits: 256 * to + low. V rounds, adds lanes, and stores the lowest bytes of 8 numbers in that order.
template <class V>
int quantize_eights(const float* x, size_t count, float inverse, int8_t* to, int8_t* low) {
  typename V::Numbers sum = {}, rounded[8 / V::kLanes];
  for (size_t i = 0; i < count; i += 8) {
    for (size_t v = 0; v < 8 / V::kLanes; ++v) {
      rounded[v] = reinterpret_cast<typename V::Numbers>(V::round(x + i + v * V::kLanes, inverse));
      sum += rounded[v];
    }
    if (low != nullptr) {
      V::store_lowest(rounded, low + i);
      for (auto& numbers : rounded) numbers = (numbers + 128) >> 8;
    }
    V::store_lowest(rounded, to + i);
  }
  return V::total(sum);
}

// Vectors of 4 outputs. V adds products, and rounding.
template <class V>
struct FourOutputs : Int4Vectors<FourLanes> {
  static float sum(Floats value) { return (value[0] + value[2]) + (value[1] + value[3]); }
  static int total(Ints value) { return value[0] + value[1] + value[2] + value[3]; }

  static Floats load_nibbles(const uint8_t* from) {
    uint16_t four;
    std::memcpy(&four, from, sizeof four);
    return to_float((four + Ints{}) & Ints{15, 15 << 4, 15 << 8, 15 << 12}) * Floats{1, 0x1p-4f, 0x1p-8f, 0x1p-12f};
  }
  template <size_t B, size_t First>
  static Floats spread(Floats value) {
    static_assert(B == 1, "a register holds no more than a block");
    return BLIP2RT_SHUFFLE(value, value, First, First, First, First);
  }

  static int quantize(const float* x, size_t count, float inverse, int8_t* to, int8_t* low) {
    return quantize_eights<V>(x, count, inverse, to, low);
  }
};

}  // namespace
}  // namespace blip2rt
