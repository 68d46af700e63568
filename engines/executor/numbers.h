// Numbers in fewer bits than a float.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/tensor.h"

namespace blip2rt {

constexpr auto kUInt4 = static_cast<DType>(21);  // only of constants: two codes a byte, the first one in the low half

// Returns a code of 4 or 8 bits.
inline int code_at(const uint8_t* codes, size_t index, size_t bits) {
  return bits == 8 ? codes[index] : codes[index / 2] >> (index % 2 * 4) & 15;
}

inline float half_to_float(uint16_t half) {
  constexpr float kSmallest = 0x1p-24f;
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, exponent = half >> 10 & 31, mantissa = half & 1023;
  uint32_t bits = sign | (exponent + 112) << 23 | mantissa << 13;
  if (exponent == 31) bits = sign | 0x7f800000 | mantissa << 13;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  if (exponent != 0) return value;
  value = static_cast<float>(mantissa) * kSmallest;
  return sign != 0 ? -value : value;
}

}  // namespace blip2rt
