// What AVX2 and SSE2 do alike in kernel.h's arithmetic. A file includes this behind its target pragma.
#pragma once

#include <emmintrin.h>

#include <cstring>

#include "kernels/resize/kernel.h"

namespace blip2rt {
namespace {
namespace x86 {

// Rounds four sums to bytes.
void store_four(uint8_t* to, __m128i sums) {
  const __m128i half = _mm_set1_epi32(1 << (ResizeKernel::kFraction - 1));
  const __m128i four = _mm_srai_epi32(_mm_add_epi32(sums, half), ResizeKernel::kFraction);
  const __m128i words = _mm_packs_epi32(four, four);
  const int32_t bytes = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
  std::memcpy(to, &bytes, sizeof bytes);
}

}  // namespace x86
}  // namespace
}  // namespace blip2rt
