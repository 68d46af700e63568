// Transposes groups of 4 bytes in NEON. Include it after BLIP2RT_TARGET.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

namespace blip2rt {
namespace {

// Transposes 4 rows of 16 bytes: vector to[j] gets bytes 4j to 4j + 3 of each row.
inline void transpose_groups(const uint8_t* base, size_t stride, int32x4_t* to) {
  int64x2_t rows[4];
  for (size_t r = 0; r < 4; ++r) rows[r] = vreinterpretq_s64_u8(vld1q_u8(base + r * stride));
  const auto words = [](int64x2_t value) { return vreinterpretq_s32_s64(value); };
  const auto pair = [](int32x4_t value) { return vreinterpretq_s64_s32(value); };
  const int64x2_t a = pair(vtrn1q_s32(words(rows[0]), words(rows[1])));
  const int64x2_t b = pair(vtrn1q_s32(words(rows[2]), words(rows[3])));
  const int64x2_t c = pair(vtrn2q_s32(words(rows[0]), words(rows[1])));
  const int64x2_t d = pair(vtrn2q_s32(words(rows[2]), words(rows[3])));
  to[0] = words(vtrn1q_s64(a, b));
  to[1] = words(vtrn1q_s64(c, d));
  to[2] = words(vtrn2q_s64(a, b));
  to[3] = words(vtrn2q_s64(c, d));
}

}  // namespace
}  // namespace blip2rt
