// The int4 product for a single row of activations or the few rows of a beam search. It reads outputs one after
// another, in V::kStreams linear streams, and unpacks codes once for all rows. The linkage rules of tile.h apply.
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

// The prefetch distance in bytes, into the second-level cache: the hardware prefetcher stops at page boundaries and
// does not reach far enough for slow memory.
template <class V>
constexpr size_t kPrefetchBytes = 8192 / V::kStreams;
constexpr size_t kCacheLine = 64;
constexpr size_t kManyBytes = 1024;  // the codes of an output from which several streams are faster

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
// Rows of values are `width` apart, rows of scales and sums `stride`.
struct FewRows {
  const int8_t *values, *low;
  const float *scales, *sums;
  size_t width, stride, blocks;
};

// The codes, block scales and zero points of an output.
struct Output {
  const uint8_t* codes;
  const uint16_t* scales;
  const uint8_t* zeros;
};

inline void prefetch_ahead(const void* from) { __builtin_prefetch(from, 0, 2); }

// Multiplies R rows by chunk number Index of a group of kLanes blocks, whose scales, times those of each row, are
// `scales`. A chunk holds several blocks, or a block several chunks, which are then summed first.
template <class V, bool Split, size_t Block, size_t Index, size_t R>
BLIP2RT_INLINE void add_chunk(const uint8_t* codes, const FewRows& x, size_t value,
                              const typename V::Floats (&scales)[R], typename V::Floats (&sums)[R]) {
  constexpr size_t kWeights = 2 * kChunkBytes<V>, kChunks = Block > kWeights ? Block / kWeights : 1;
  constexpr size_t kBlocks = kWeights > Block ? kWeights / Block : 1;
  typename V::Ints high[R], low[R];
  for (size_t r = 0; r < R; ++r) high[r] = low[r] = typename V::Ints{};
  for (size_t i = 0; i < kChunks; ++i) {
    constexpr size_t kStep = kChunks * kChunkBytes<V>;
    asm volatile("");  // or GCC prefetches for the whole group at its beginning
    if ((Index * kStep + i * kChunkBytes<V>) % kCacheLine == 0) {
      prefetch_ahead(codes + i * kChunkBytes<V> + kPrefetchBytes<V>);
    }
    const typename V::Ints both = V::load(codes + i * kChunkBytes<V>);
    const typename V::Ints evens = V::low_nibbles(both), odds = V::high_nibbles(both);
    for (size_t r = 0; r < R; ++r) {
      const size_t at = r * x.width + value + i * kWeights * kFewRowsValueBytes<V>;
      high[r] = V::dot_all(high[r], evens, odds, x.values + at);
      if constexpr (Split) low[r] = V::dot_all(low[r], evens, odds, x.low + at);
    }
  }
  for (size_t r = 0; r < R; ++r) {
    if constexpr (Split) high[r] = V::join(high[r], low[r]);
    sums[r] = V::mul_add(V::to_float(high[r]), V::template spread<kBlocks, Index * kBlocks>(scales[r]), sums[r]);
  }
}

// Multiplies R rows by the first `chunks` chunks of a group.
template <class V, bool Split, size_t Block, bool All, size_t R, size_t... Index>
BLIP2RT_INLINE void add_group(const uint8_t* codes, size_t chunks, const FewRows& x, size_t value,
                              const typename V::Floats (&scales)[R], typename V::Floats (&sums)[R],
                              std::index_sequence<Index...>) {
  constexpr size_t kWeights = Block > 2 * kChunkBytes<V> ? Block : 2 * kChunkBytes<V>;
  const auto add = [&](auto index) {
    constexpr size_t i = decltype(index)::value;
    if (All || i < chunks) {
      add_chunk<V, Split, Block, i, R>(codes + i * kWeights / 2, x, value + i * kWeights * kFewRowsValueBytes<V>,
                                       scales, sums);
    }
  };
  (add(std::integral_constant<size_t, Index>()), ...);
}

// Multiplies R rows by O outputs and adds the results per lane. It reads in whole registers, whose end, of the next
// outputs, is multiplied by zero.
template <class V, bool Split, size_t Block, size_t R, size_t O>
void multiply_outputs(const Output (&outputs)[O], const FewRows& x, typename V::Floats (&sums)[O][R]) {
  constexpr size_t kWeights = Block > 2 * kChunkBytes<V> ? Block : 2 * kChunkBytes<V>;
  constexpr size_t kChunks = V::kLanes * Block / kWeights;
  using All = std::make_index_sequence<kChunks>;
  for (auto& of_rows : sums) {
    for (auto& sum : of_rows) sum = typename V::Floats{};
  }
  for (size_t block = 0; block < x.blocks; block += V::kLanes) {
    for (size_t o = 0; o < O; ++o) {
      const Output& w = outputs[o];
      prefetch_ahead(w.scales + block + kPrefetchBytes<V> * 2 / Block);
      prefetch_ahead(w.zeros + block / 2 + kPrefetchBytes<V> / Block);
      const typename V::Floats of_weights = V::load_halves(w.scales + block);
      const typename V::Floats of_zeros = V::mul(of_weights, V::load_nibbles(w.zeros + block / 2));
      typename V::Floats scales[R];
      for (size_t r = 0; r < R; ++r) {
        const size_t at = r * x.stride + block;
        scales[r] = V::mul(of_weights, V::load_floats(x.scales + at));
        sums[o][r] = V::mul_sub(of_zeros, V::load_floats(x.sums + at), sums[o][r]);
      }
      const uint8_t* codes = w.codes + block * Block / 2;
      const size_t left = x.blocks - block, value = block * Block * kFewRowsValueBytes<V>;
      if (V::kUnrolls && left >= V::kLanes) {
        add_group<V, Split, Block, true, R>(codes, kChunks, x, value, scales, sums[o], All());
      } else {
        add_group<V, Split, Block, false, R>(codes, (left * Block + kWeights - 1) / kWeights, x, value, scales, sums[o],
                                             All());
      }
    }
  }
}

// Returns whether this product is faster than tiles.
template <class V>
bool uses_few_rows(const Int4Input& input) {
  return input.rows <= (input.low == nullptr ? V::kFewRows8Bit : V::kFewRows16Bit);
}

size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

// The distance between rows of values.
template <class V>
size_t few_rows_stride(const Int4Matrix& m) {
  return round_up(m.blocks() * m.block, 2 * kChunkBytes<V>) * kFewRowsValueBytes<V>;
}

template <size_t Block>
Output output_of(const Int4Matrix& m, size_t output) {
  const size_t blocks = m.blocks();
  return {m.codes + output * blocks * Block / 2, m.scales + output * blocks,
          m.zero_points + output * ((blocks + 1) / 2)};
}

// Returns whether the registers of an output do not reach past the matrix.
template <class V, size_t Block>
bool ends_inside(const Int4Matrix& m, size_t output) {
  const size_t blocks = m.blocks(), bytes = blocks * Block / 2, padded = round_up(blocks, V::kLanes);
  return stays_inside(m, output, blocks, padded) && stays_inside(m, output, (blocks + 1) / 2, padded / 2) &&
         stays_inside(m, output, bytes, round_up(bytes, kChunkBytes<V>));
}

// Returns a zero-padded copy of an output.
template <class V, size_t Block>
Output padded_output(const Int4Matrix& m, size_t output, uint8_t* copy) {
  const size_t blocks = m.blocks(), bytes = blocks * Block / 2;
  const size_t padded = round_up(blocks, V::kLanes), padded_bytes = round_up(bytes, kChunkBytes<V>);
  const Output w = output_of<Block>(m, output);
  uint8_t *scales = copy + padded_bytes, *zeros = scales + padded * sizeof *w.scales;
  std::memset(copy, 0, padded_bytes + padded * sizeof *w.scales + padded / 2);
  std::memcpy(copy, w.codes, bytes);
  std::memcpy(scales, w.scales, blocks * sizeof *w.scales);
  std::memcpy(zeros, w.zeros, (blocks + 1) / 2);
  return {copy, reinterpret_cast<uint16_t*>(scales), zeros};
}

template <class V, bool Split, size_t Block, size_t R>
void multiply_part(const Int4Matrix& m, const Int4Input& input, float* out, size_t begin, size_t end,
                   uint8_t* scratch) {
  const size_t blocks = m.blocks(), padded = round_up(blocks, V::kLanes);
  float *scales = reinterpret_cast<float*>(scratch), *sums = scales + R * padded;
  std::memset(scales, 0, 2 * R * padded * sizeof(float));
  for (size_t r = 0; r < R; ++r) {
    std::memcpy(scales + r * padded, input.scales + r * blocks, blocks * sizeof(float));
    std::memcpy(sums + r * padded, input.sums + r * blocks, blocks * sizeof(float));
  }
  const FewRows x = {input.values, input.low, scales, sums, few_rows_stride<V>(m), padded, blocks};
  uint8_t* copy = reinterpret_cast<uint8_t*>(sums + R * padded);
  const bool is_short = blocks * Block / 2 < kManyBytes;
  if constexpr (R == 1 && V::kUnrolls) {
    // Short outputs are multiplied side by side, so that none waits for the sum of the one before.
    constexpr size_t kTogether = 4;
    for (; is_short && begin + kTogether <= end && ends_inside<V, Block>(m, begin + kTogether - 1);
         begin += kTogether) {
      Output outputs[kTogether];
      for (size_t i = 0; i < kTogether; ++i) outputs[i] = output_of<Block>(m, begin + i);
      typename V::Floats of_lanes[kTogether][1];
      multiply_outputs<V, Split, Block>(outputs, x, of_lanes);
      for (size_t i = 0; i < kTogether; ++i) out[begin + i] = V::sum(of_lanes[i][0]);
    }
  }
  const size_t streams = is_short ? 1 : V::kStreams, distance = (end - begin + streams - 1) / streams;
  for (size_t i = 0; i < distance * streams; ++i) {
    const size_t output = begin + i % streams * distance + i / streams;
    if (output >= end) continue;
    const bool inside = ends_inside<V, Block>(m, output);
    const Output outputs[] = {inside ? output_of<Block>(m, output) : padded_output<V, Block>(m, output, copy)};
    typename V::Floats of_lanes[1][R];
    multiply_outputs<V, Split, Block>(outputs, x, of_lanes);
    for (size_t r = 0; r < R; ++r) out[r * m.n + output] = V::sum(of_lanes[0][r]);
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
  const bool few = uses_few_rows<V>(input);
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

template <class V, bool Split, size_t R = Split ? V::kFewRows16Bit : V::kFewRows8Bit>
void multiply_few(const Int4Matrix& m, const Int4Input& input, float* out, size_t begin, size_t end, uint8_t* scratch) {
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
  if (!uses_few_rows<V>(input)) return multiply_tiles<V, Split>(m, input, out, first, last, scratch);
  const size_t begin = first * V::kLanes, end = last * V::kLanes < m.n ? last * V::kLanes : m.n;
  multiply_few<V, Split>(m, input, out, begin, end, scratch);
}

template <class V>
void multiply(const Int4Matrix& m, const Int4Input& input, float* out, size_t first, size_t last, uint8_t* scratch) {
  if (input.low != nullptr && !V::kWideValues) return multiply_planes<V, true>(m, input, out, first, last, scratch);
  multiply_planes<V, false>(m, input, out, first, last, scratch);
}

}  // namespace
}  // namespace blip2rt
