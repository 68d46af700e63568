// Quantizes activations for amx.cpp: 4 values of each row next to those of the other rows, in the order of unpacked
// codes. Include it after BLIP2RT_TARGET.
#pragma once

#include "kernels/amx.h"
#include "kernels/int4/avx512.h"

namespace blip2rt {
namespace {
namespace amx {

// The word permutation of order_bytes().
template <size_t Depth>
struct alignas(64) Order {
  uint16_t words[32] = {};

  constexpr Order() {
    for (size_t i = 0; i < Depth / 2; ++i) {
      const size_t word = i % (Depth / 4), odd = i / (Depth / 4);
      words[i] = static_cast<uint16_t>(8 * (word % 4) + 4 * odd + word / 4);
    }
  }
};

// Reorders `Depth` int8 values like unpacked codes: even values before odd ones.
template <size_t Depth>
Avx512::Ints order_bytes(const Avx512::Ints* numbers) {
  static constexpr Order<Depth> kOrder;
  // Each quarter gets 4 numbers of each register: its even ones become words 0 to 3, its odd ones words 4 to 7.
  const Avx512::Ints packed =
      _mm512_packs_epi16(_mm512_packs_epi32(numbers[0], numbers[1]), _mm512_packs_epi32(numbers[2], numbers[3]));
  const __m128i evens_first = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
  const Avx512::Ints parted = _mm512_shuffle_epi8(packed, _mm512_broadcast_i32x4(evens_first));
  return _mm512_permutexvar_epi16(Avx512::load(kOrder.words), parted);
}

// Quantized values of a part of a block of one row, in the order of unpacked codes.
struct Rounded {
  Avx512::Ints values, low;
};

__mmask16 first_lanes(size_t count) {
  return static_cast<__mmask16>(count < Avx512::kLanes ? (1u << count) - 1 : 0xffffu);
}

// Rounds up to Depth numbers times `inverse`, followed by zeros.
template <bool Split, size_t Depth>
Rounded round_some(const float* x, size_t count, float inverse) {
  Avx512::Ints values[4] = {}, low[4] = {};
  for (size_t i = 0; i < Depth / 16; ++i) {
    const __mmask16 there = first_lanes(count > 16 * i ? count - 16 * i : 0);
    const Avx512::Floats some = _mm512_maskz_loadu_ps(there, x + 16 * i);
    values[i] = _mm512_cvtps_epi32(Avx512::mul(some, Avx512::broadcast(inverse)));
    if constexpr (Split) {
      const Avx512::Ints whole = values[i];
      values[i] = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(128)), 8);
      low[i] = _mm512_sub_epi32(whole, _mm512_slli_epi32(values[i], 8));
    }
  }
  return {order_bytes<Depth>(values), Split ? order_bytes<Depth>(low) : _mm512_setzero_si512()};
}

// Returns the bits of the largest magnitude; they are at least those of infinity if a number is not finite.
uint32_t largest_bits(const float* x, size_t count) {
  Avx512::Ints largest = _mm512_setzero_si512();
  for (size_t i = 0; i < count; i += 16) {
    const Avx512::Ints bits = _mm512_castps_si512(_mm512_maskz_loadu_ps(first_lanes(count - i), x + i));
    largest = _mm512_max_epu32(largest, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
  }
  return _mm512_reduce_max_epu32(largest);
}

// Writes the values of up to 16 rows in tile order: 4 of each row next to those of the other rows.
template <size_t Depth>
void store_fours(const Avx512::Ints* of_rows, size_t column, int8_t* to) {
  alignas(64) uint8_t rows[kTileRows][kTileBytes];
  for (size_t r = 0; r < kTileRows; ++r) Avx512::store(rows[r], of_rows[r]);
  for (size_t part = 0; part < Depth; part += 16) {
    Avx512::Ints fours[4];
    Avx512::transpose(rows[0] + part, kTileBytes, fours);
    for (size_t i = 0; i < 4; ++i, to += column * 4) _mm512_mask_storeu_epi32(to, first_lanes(column), fours[i]);
  }
}

// Quantizes a column of rows, of which `rows` exist; the others become zeros. Depth: that of a tile.
template <bool Split, size_t Depth>
void quantize_column(const float* x, size_t first, size_t rows, size_t column, const Int4Matrix& m,
                     const Int4Input& input) {
  const size_t blocks = m.blocks();
  const float levels = Split ? 127.0f * 256.0f : 127.0f;
  float* scales = input.scales + first * blocks;
  for (size_t block = 0; block < blocks; ++block, scales += column) {
    const size_t begin = block * m.block, end = m.k - begin < m.block ? m.k : begin + m.block;
    float inverses[kTileRows] = {};
    std::memset(scales, 0, column * sizeof(float));
    for (size_t r = 0; r < rows; ++r) {
      const uint32_t bits = largest_bits(x + (first + r) * m.k + begin, end - begin);
      float largest;
      std::memcpy(&largest, &bits, sizeof largest);
      const bool finite = largest <= 3.402823466e38f;  // false for NaN
      inverses[r] = largest > 0 && finite ? levels / largest : 0.0f;
      scales[r] = finite ? largest / levels : largest - largest;
    }
    for (size_t k = begin; k < begin + m.block; k += Depth) {
      Avx512::Ints values[kTileRows] = {}, low[kTileRows] = {};
      for (size_t r = 0; r < rows; ++r) {
        const size_t left = end > k ? end - k : 0;
        const float* from = x + (first + r) * m.k + (left > 0 ? k : 0);
        const Rounded some = round_some<Split, Depth>(from, left < Depth ? left : Depth, inverses[r]);
        values[r] = some.values, low[r] = some.low;
      }
      const size_t at = first * blocks * m.block + k * column;
      store_fours<Depth>(values, column, input.values + at);
      if constexpr (Split) store_fours<Depth>(low, column, input.low + at);
    }
  }
}

}  // namespace amx
}  // namespace
}  // namespace blip2rt
