// The int4 product for a single row of activations or the few rows of a beam search. It reads each output separately,
// in a few sequential streams that the hardware prefetcher follows. The linkage rules of tile.h apply.
#pragma once

#include "kernels/int4/tile.h"

namespace blip2rt {
namespace {

// The bytes of codes in one register: two weights per byte.
template <class V>
constexpr size_t kChunkBytes = 4 * V::kLanes;

// The bytes of a value of few rows.
template <class V>
constexpr size_t kFewRowsValueBytes = V::kWideValues ? 2 : 1;

// The prefetch distance in bytes. The hardware prefetcher stops at page boundaries and does not reach far enough for
// slow memory.
constexpr size_t kPrefetchBytes = 2048;

// Reorders a row from quantize_row(), where the even values of every 8 come first, so that the even values of every
// chunk come first.
template <class V>
void order_chunks(int8_t* values, size_t width) {
  for (size_t begin = 0; begin < width; begin += 2 * kChunkBytes<V>) {
    const size_t eights = (width - begin < 2 * kChunkBytes<V> ? width - begin : 2 * kChunkBytes<V>) / 8;
    int8_t ordered[2 * kChunkBytes<V>] = {};
    for (size_t i = 0; i < eights; ++i) {
      std::memcpy(ordered + 4 * i, values + begin + 8 * i, 4);
      std::memcpy(ordered + kChunkBytes<V> + 4 * i, values + begin + 8 * i + 4, 4);
    }
    std::memcpy(values + begin, ordered, sizeof ordered);
  }
}

// The activations for this product: values in chunk order; scales and sums per block, zero-padded to a whole register.
// Rows of values are `width` apart, rows of scales and sums `blocks`.
struct FewRows {
  const int8_t *values, *low;
  const float *scales, *sums;
  size_t width, blocks;
};

// Multiplies an output's block scales by those of each row into `scales`, and sums the zero points' contribution per
// lane into `offsets`. `may_overread`: reads may extend into the next outputs, whose share is multiplied by zero.
template <class V, size_t R>
void prepare_scales(const Int4Matrix& m, const FewRows& x, size_t output, bool may_overread, float* scales,
                    typename V::Floats* offsets) {
  const size_t blocks = m.blocks(), zero_bytes = (blocks + 1) / 2;
  const uint16_t* halves = m.scales + output * blocks;
  const uint8_t* zeros = m.zero_points + output * zero_bytes;
  for (size_t r = 0; r < R; ++r) offsets[r] = typename V::Floats{};
  for (size_t block = 0; block < blocks; block += V::kLanes) {
    const size_t left = blocks - block;
    uint16_t some_halves[V::kLanes];
    uint8_t some_zeros[V::kLanes / 2];
    const uint16_t* half = halves + block;
    const uint8_t* zero = zeros + block / 2;
    __builtin_prefetch(half + kPrefetchBytes / 16);  // short streams that the hardware prefetcher does not follow
    __builtin_prefetch(zero + kPrefetchBytes / 32);
    if (!may_overread && left < V::kLanes) {
      std::memset(some_halves, 0, sizeof some_halves);
      std::memset(some_zeros, 0, sizeof some_zeros);
      std::memcpy(some_halves, half, left * sizeof *half);
      std::memcpy(some_zeros, zero, (left + 1) / 2);
      half = some_halves, zero = some_zeros;
    }
    const typename V::Floats of_weights = V::load_halves(half);
    const typename V::Floats of_zeros = V::mul(of_weights, V::load_nibbles(zero));
    for (size_t r = 0; r < R; ++r) {
      const size_t at = r * x.blocks + block;
      V::store(scales + at, V::mul(of_weights, V::load_floats(x.scales + at)));
      offsets[r] = V::mul_sub(of_zeros, V::load_floats(x.sums + at), offsets[r]);
    }
  }
}

// Outputs multiplied at once, far apart: several streams use more memory bandwidth than one, which stalls at every page
// boundary.
template <size_t R>
constexpr size_t kStreams = R == 1 ? 4 : 2;

// Multiplies R rows by S outputs, whose codes are `stride` apart, and adds the results per lane. A chunk holds B blocks
// or a block holds C chunks; the other of the two is 1. scales (S, R, blocks).
template <class V, bool Split, size_t B, size_t C, size_t R, size_t S>
void add_outputs(const uint8_t* codes, size_t stride, size_t bytes, const FewRows& x, bool may_overread,
                 const float* scales, typename V::Floats (*sums)[R]) {
  const auto add = [&](const uint8_t* from, size_t apart, size_t first, size_t chunks) {
    typename V::Ints high[S][R], low[S][R];
    for (size_t s = 0; s < S; ++s) {
      for (size_t r = 0; r < R; ++r) high[s][r] = low[s][r] = typename V::Ints{};
    }
    for (size_t i = 0; i < chunks; ++i) {
      for (size_t s = 0; s < S; ++s) {
        const typename V::Ints both = V::load(from + s * apart + i * kChunkBytes<V>);
        const typename V::Ints evens = V::low_nibbles(both), odds = V::high_nibbles(both);
        for (size_t r = 0; r < R; ++r) {
          const size_t at = r * x.width + 2 * (first + i) * kChunkBytes<V> * kFewRowsValueBytes<V>;
          high[s][r] = V::dot_all(high[s][r], evens, odds, x.values + at);
          if constexpr (Split) low[s][r] = V::dot_all(low[s][r], evens, odds, x.low + at);
        }
      }
    }
    for (size_t s = 0; s < S; ++s) {
      for (size_t r = 0; r < R; ++r) {
        if constexpr (Split) high[s][r] = V::join(high[s][r], low[s][r]);
        const float* of_blocks = scales + (s * R + r) * x.blocks + first / C * B;
        sums[s][r] = V::mul_add(V::to_float(high[s][r]), V::template spread<B>(of_blocks), sums[s][r]);
      }
    }
  };
  const size_t whole = bytes / kChunkBytes<V> / C * C, left = bytes - whole * kChunkBytes<V>;
  for (size_t chunk = 0; chunk < whole; chunk += C) {
    const uint8_t* from = codes + chunk * kChunkBytes<V>;
    for (size_t s = 0; s < S; ++s) __builtin_prefetch(from + s * stride + kPrefetchBytes);
    add(from, stride, chunk, C);
  }
  if (left == 0) return;
  const uint8_t* from = codes + whole * kChunkBytes<V>;  // an incomplete chunk of several blocks
  if (may_overread) return add(from, stride, whole, 1);
  uint8_t last[S * kChunkBytes<V>] = {};
  for (size_t s = 0; s < S; ++s) std::memcpy(last + s * kChunkBytes<V>, from + s * stride, left);
  add(last, kChunkBytes<V>, whole, 1);
}

// Returns whether this product is faster than tiles. With several rows the horizontal sums at the end of each output
// pay off only for long outputs and 8-bit activations.
template <class V>
bool uses_few_rows(const Int4Matrix& m, const Int4Input& input) {
  constexpr size_t kLong = 1024;  // bytes
  const bool long_outputs = m.blocks() * m.block / 2 >= kLong;
  return input.rows == 1 || (input.rows <= V::kFewRows && long_outputs && (V::kWideValues || input.low == nullptr));
}

size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

// The distance between rows of values.
template <class V>
size_t few_rows_stride(const Int4Matrix& m) {
  return round_up(m.blocks() * m.block, 2 * kChunkBytes<V>) * kFewRowsValueBytes<V>;
}

// Multiplies R rows by S outputs from `output` on, `step` apart.
template <class V, bool Split, size_t Block, size_t R, size_t S>
void multiply_outputs(const Int4Matrix& m, const FewRows& x, float* out, size_t output, size_t step, bool may_overread,
                      float* scales) {
  constexpr size_t kWeights = 2 * kChunkBytes<V>, kBlocks = kWeights > Block ? kWeights / Block : 1;
  constexpr size_t kChunks = Block > kWeights ? Block / kWeights : 1;
  const size_t bytes = m.blocks() * Block / 2;
  typename V::Floats sums[S][R];
  for (size_t s = 0; s < S; ++s) {
    prepare_scales<V, R>(m, x, output + s * step, may_overread, scales + s * R * x.blocks, sums[s]);
  }
  add_outputs<V, Split, kBlocks, kChunks, R, S>(m.codes + output * bytes, step * bytes, bytes, x, may_overread, scales,
                                                sums);
  for (size_t s = 0; s < S; ++s) {
    for (size_t r = 0; r < R; ++r) out[r * m.n + output + s * step] = V::sum(sums[s][r]);
  }
}

template <class V, bool Split, size_t Block, size_t R>
void multiply_part(const Int4Matrix& m, const Int4Input& input, float* out, size_t begin, size_t end, float* scratch) {
  constexpr size_t kOutputsAtOnce = kStreams<R>;
  static_assert((kOutputsAtOnce + 2) * R <= Int4Input::kFewRowsScratchFloats, "scratch has no room for more");
  const size_t blocks = m.blocks(), bytes = blocks * Block / 2, zero_bytes = (blocks + 1) / 2;
  const size_t padded = round_up(blocks, V::kLanes);
  float *of_x = scratch + kOutputsAtOnce * R * padded, *sums = of_x + R * padded;
  std::memset(of_x, 0, 2 * R * padded * sizeof(float));
  for (size_t r = 0; r < R; ++r) {
    std::memcpy(of_x + r * padded, input.scales + r * blocks, blocks * sizeof(float));
    std::memcpy(sums + r * padded, input.sums + r * blocks, blocks * sizeof(float));
  }
  const FewRows x = {input.values, input.low, of_x, sums, few_rows_stride<V>(m), padded};
  const auto fits = [&](size_t output) {
    return stays_inside(m, output, blocks, padded) && stays_inside(m, output, zero_bytes, padded / 2) &&
           stays_inside(m, output, bytes, round_up(bytes, kChunkBytes<V>));
  };
  // All but the last outputs of the matrix are read in whole registers: copying the end of an output would cost too
  // much for short outputs.
  size_t whole = end;
  while (whole > begin && !fits(whole - 1)) --whole;
  const size_t step = (whole - begin) / kOutputsAtOnce;
  for (size_t i = 0; i < step; ++i) {
    multiply_outputs<V, Split, Block, R, kOutputsAtOnce>(m, x, out, begin + i, step, true, scratch);
  }
  for (size_t output = begin + kOutputsAtOnce * step; output < end; ++output) {
    multiply_outputs<V, Split, Block, R, 1>(m, x, out, output, 0, output < whole, scratch);
  }
}

// Writes every four values V::kValueCopies times, in place.
template <class V>
void copy_values(int8_t* values, size_t count) {
  if constexpr (V::kValueCopies == 1) return;
  for (size_t i = count; i > 0; i -= 4) {
    int32_t four;
    std::memcpy(&four, values + i - 4, sizeof four);
    V::store(reinterpret_cast<uint8_t*>(values + (i - 4) * V::kValueCopies), V::broadcast(four));
  }
}

// Widens a row of `count` values to 16 bits, 256 * values + low, in place. Few rows get every fourth value of 32, as 16
// bits of codes have them; tiles get the first of every four, the third, the second and the fourth.
inline void widen_values(int8_t* values, const int8_t* low, size_t count, bool few) {
  for (size_t begin = count; begin > 0;) {
    begin -= 32;
    int16_t wide[32];
    for (size_t i = 0; i < 32; ++i) {
      const size_t from = few ? i % 8 / 2 * 8 + i / 16 * 4 + i % 2 * 2 + i / 8 % 2 : i / 4 * 4 + i % 2 * 2 + i / 2 % 2;
      const int value = values[begin + from];
      wide[i] = static_cast<int16_t>(low == nullptr ? value : 256 * value + low[begin + from]);
    }
    std::memcpy(values + 2 * begin, wide, sizeof wide);
  }
}

template <class V>
void quantize(const float* x, size_t first, size_t rows, const Int4Matrix& m, const Int4Input& input) {
  const bool few = uses_few_rows<V>(m, input);
  const size_t width = m.blocks() * m.block, stride = few ? few_rows_stride<V>(m) : width * V::kValueCopies;
  for (size_t row = first; row < first + rows; ++row) {
    quantize_row<V>(x, row, m, input, stride);
    if constexpr (V::kWideValues) {
      widen_values(input.values + row * stride, input.low == nullptr ? nullptr : input.low + row * stride, width, few);
      continue;
    }
    const auto arrange = few ? order_chunks<V> : copy_values<V>;
    arrange(input.values + row * stride, width);
    if (input.low != nullptr) arrange(input.low + row * stride, width);
  }
}

template <class V, bool Split, size_t R = Split ? 1 : V::kFewRows>
void multiply_few(const Int4Matrix& m, const Int4Input& input, float* out, size_t begin, size_t end, float* scratch) {
  if constexpr (R > 1) {
    if (input.rows < R) return multiply_few<V, Split, R - 1>(m, input, out, begin, end, scratch);
  }
  switch (m.block) {
    case 32: return multiply_part<V, Split, 32, R>(m, input, out, begin, end, scratch);
    case 64: return multiply_part<V, Split, 64, R>(m, input, out, begin, end, scratch);
    default: return multiply_part<V, Split, 128, R>(m, input, out, begin, end, scratch);
  }
}

template <class V, bool Split>
void multiply_planes(const Int4Matrix& m, const Int4Input& input, float* out, size_t first, size_t last,
                     uint8_t* scratch) {
  if (!uses_few_rows<V>(m, input)) return multiply_tiles<V, Split>(m, input, out, first, last, scratch);
  const size_t begin = first * V::kLanes, end = last * V::kLanes < m.n ? last * V::kLanes : m.n;
  multiply_few<V, Split>(m, input, out, begin, end, reinterpret_cast<float*>(scratch));
}

template <class V>
void multiply(const Int4Matrix& m, const Int4Input& input, float* out, size_t first, size_t last, uint8_t* scratch) {
  if (input.low != nullptr && !V::kWideValues) return multiply_planes<V, true>(m, input, out, first, last, scratch);
  multiply_planes<V, false>(m, input, out, first, last, scratch);
}

}  // namespace
}  // namespace blip2rt
