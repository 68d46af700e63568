// What the vectors of SSE4.1 and NEON for tile.h share: 16 outputs per tile. Include it after BLIP2RT_TARGET.
#pragma once

#include "kernels/int8/tile.h"
#include "kernels/vectors.h"

namespace blip2rt {
namespace {

// V adds products, and rounding.
template <class V>
struct FourLanes : Vectors {
  static Ints sub(Ints a, Ints b) { return a - b; }
  static Ints mul(Ints a, Ints b) { return a * b; }
  static Floats affine(Ints products, float scale, const float* scales, const float* bias) {
    return to_float(products) * (load_floats(scales) * scale) + load_floats(bias);
  }

  // Widens [low, high] to contain x. Returns whether x and high - low are finite.
  static bool range(const float* x, size_t count, float* low, float* high) {
    Floats least = broadcast(*low), most = broadcast(*high);
    Ints disordered = {};
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

  // Rounds x to 0 to 255, in eights that may end after `count`.
  template <class Value>
  static void quantize(const float* x, size_t count, float inverse, float zero, Value* to) {
    const Ints offset = broadcast(static_cast<int32_t>(zero)), none = {}, most = broadcast(255);
    const auto four = [&](const float* from) {
      Ints rounded = V::round(from, inverse) + offset;
      rounded = rounded < none ? none : rounded;
      return rounded > most ? most : rounded;
    };
    for (size_t i = 0; i < count; i += 2 * kLanes) {
      float left[2 * kLanes] = {};
      if (count - i < 2 * kLanes) std::memcpy(left, x + i, (count - i) * sizeof(float));
      const float* from = count - i < 2 * kLanes ? left : x + i;
      V::store_eight(four(from), four(from + kLanes), to + i);
    }
  }
};

}  // namespace
}  // namespace blip2rt
