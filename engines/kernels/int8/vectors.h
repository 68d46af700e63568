// What the vectors for tile.h share. Include it after BLIP2RT_TARGET.
#pragma once

#include "kernels/int8/tile.h"
#include "kernels/vectors.h"

namespace blip2rt {
namespace {

// V, an instruction set, adds products, rounding and storing.
template <class V, class Lanes>
struct Int8Vectors : Vectors<Lanes> {
  using typename Vectors<Lanes>::Ints;
  using typename Vectors<Lanes>::Floats;
  using typename Vectors<Lanes>::Numbers;
  using Vectors<Lanes>::broadcast, Vectors<Lanes>::load_floats, Vectors<Lanes>::kLanes;
  static constexpr int32_t kValueOffset = 0;

  static Ints minus_product(Ints from, Ints a, Ints b) {
    const Numbers product = reinterpret_cast<Numbers>(a) * reinterpret_cast<Numbers>(b);
    return reinterpret_cast<Ints>(reinterpret_cast<Numbers>(from) - product);
  }
  static Floats affine(Ints products, float scale, const float* scales, const float* bias) {
    return V::to_float(products) * (load_floats(scales) * scale) + load_floats(bias);
  }

  // Widens codes to 16 bits. The first and third of every four form a group, as do the second and fourth, so that no
  // shuffle is needed.
  static void transpose(const uint8_t* base, size_t stride, Ints* to) {
    typedef int16_t Shorts __attribute__((vector_size(sizeof(Ints))));
    Ints fours[4];
    Lanes::transpose(base, stride, fours);
    for (size_t i = 0; i < 4; ++i) {
      to[2 * i] = reinterpret_cast<Ints>((reinterpret_cast<Shorts>(fours[i]) << 8) >> 8);
      to[2 * i + 1] = reinterpret_cast<Ints>(reinterpret_cast<Shorts>(fours[i]) >> 8);
    }
  }

  // Multiplies a group of a row's 16 values by four vectors of codes.
  using Values = const uint8_t*;
  static Values values(const uint8_t* from) { return from; }
  template <size_t Group>
  static void dot_group(Ints* sums, Values values, const Ints* codes) {
    dot_broadcast<V, Group>(sums, values, codes);
  }

  // Widens [low, high] to contain x. Returns whether x and high - low are finite.
  static bool range(const float* x, size_t count, float* low, float* high) {
    Floats least = broadcast(*low), most = broadcast(*high);
    Numbers disordered = {};
    const auto widen = [&](Floats value) {
      least = value < least ? value : least;
      most = value > most ? value : most;
      disordered |= value != value;
    };
    size_t i = 0;
    for (; i + kLanes <= count; i += kLanes) widen(load_floats(x + i));
    for (; i < count; ++i) widen(broadcast(x[i]));
    bool ordered = true;
    for (size_t lane = 0; lane < kLanes; ++lane) {
      *low = least[lane] < *low ? least[lane] : *low;
      *high = most[lane] > *high ? most[lane] : *high;
      ordered = ordered && disordered[lane] == 0;
    }
    return ordered && *high - *low <= 3.402823466e38f;
  }

  // Rounds x to 0 to 255, in eights or sixteens that may end after `count`.
  template <class Value>
  static void quantize(const float* x, size_t count, float inverse, float zero, Value* to) {
    constexpr size_t kVectors = kLanes < 8 ? 2 : 1, kNumbers = kVectors * kLanes;
    const Numbers offset = static_cast<int32_t>(zero) + Numbers{}, none = {}, most = 255 + Numbers{};
    for (size_t i = 0; i < count; i += kNumbers) {
      float left[kNumbers] = {};
      if (count - i < kNumbers) std::memcpy(left, x + i, (count - i) * sizeof(float));
      const float* from = count - i < kNumbers ? left : x + i;
      Ints rounded[kVectors];
      for (size_t v = 0; v < kVectors; ++v) {
        Numbers number = reinterpret_cast<Numbers>(V::round(from + v * kLanes, inverse)) + offset;
        number = number < none ? none : number;
        rounded[v] = reinterpret_cast<Ints>(number > most ? most : number);
      }
      V::store_values(rounded, to + i);
    }
  }
};

}  // namespace
}  // namespace blip2rt
