// Random numbers without the standard library: a seed gives the same text on every machine.
#pragma once

#include <cstdint>

namespace blip2rt {

// SplitMix64. Streams of one seed are independent.
class Random {
 public:
  Random() = default;
  Random(uint64_t seed, uint64_t image, uint64_t draw)
      : state_(mix(mix(mix(seed + kStep) + image + kStep) + draw + kStep)) {}

  double uniform() {  // [0, 1)
    state_ += kStep;
    return static_cast<double>(mix(state_) >> 11) * (1.0 / 9007199254740992.0);
  }

 private:
  static constexpr uint64_t kStep = 0x9e3779b97f4a7c15u;

  static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  uint64_t state_ = 0;
};

}  // namespace blip2rt
