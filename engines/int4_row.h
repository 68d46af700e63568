// The product of int4_matmul.h for one row of activations, or for the few of a beam search, which decide how fast a
// token is: one output after the other, each a single stream of memory that the processor foresees. Included behind
// int4_tile.h, by the same rules.
#pragma once

#include "int4_tile.h"

namespace blip2rt {
namespace {

// Codes that are read at once: as many bytes as a register has, two weights a byte.
template <class V>
constexpr size_t kChunk = 4 * V::kLanes;

// Bytes that the memory is asked for in advance: a processor foresees the stream, but not beyond its page, nor far
// enough where memory answers late.
constexpr size_t kForesight = 2048;

// What quantize() left of one row, of every 8 values the even ones before the odd ones -> of every chunk's.
template <class V>
void order_chunks(int8_t* values, size_t width) {
  for (size_t begin = 0; begin < width; begin += 2 * kChunk<V>) {
    const size_t eights = (width - begin < 2 * kChunk<V> ? width - begin : 2 * kChunk<V>) / 8;
    int8_t ordered[2 * kChunk<V>] = {};
    for (size_t i = 0; i < eights; ++i) {
      std::memcpy(ordered + 4 * i, values + begin + 8 * i, 4);
      std::memcpy(ordered + kChunk<V> + 4 * i, values + begin + 8 * i + 4, 4);
    }
    std::memcpy(values + begin, ordered, sizeof ordered);
  }
}

// Some rows of activations as this product reads them: values in the order of chunks, and scales and sums of blocks,
// with zeros up to a whole register behind the last; where one row ends and the next begins.
struct FewRows {
  const int8_t *values, *low;
  const float *scales, *sums;
  size_t width, blocks;
};

// For each block of an output its scale times each row's, as many registers as hold them; -> what the zero points take
// from the products, as sums of lanes. `beyond`: reading may reach into the next outputs, which the zeros make nothing
// of.
template <class V, size_t R>
void prepare(const Int4Matrix& m, const FewRows& x, size_t output, bool beyond, float* scales,
             typename V::Floats* offsets) {
  const size_t blocks = m.blocks(), zero_bytes = (blocks + 1) / 2;
  const uint16_t* halves = m.scales + output * blocks;
  const uint8_t* zeros = m.zero_points + output * zero_bytes;
  for (size_t r = 0; r < R; ++r) offsets[r] = V::zero();
  for (size_t block = 0; block < blocks; block += V::kLanes) {
    const size_t left = blocks - block;
    uint16_t some_halves[V::kLanes];
    uint8_t some_zeros[V::kLanes / 2];
    const uint16_t* half = halves + block;
    const uint8_t* zero = zeros + block / 2;
    if (!beyond && left < V::kLanes) {
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

// One output of R rows, `n` apart, added to the sums of lanes `even`. A chunk holds B blocks, or a block C chunks; the
// other of the two is 1.
template <class V, bool Split, size_t B, size_t C, size_t R>
void multiply_one(const uint8_t* codes, size_t bytes, const FewRows& x, bool beyond, const float* scales,
                  typename V::Floats* even, float* out, size_t n) {
  typename V::Floats odd[R];
  for (auto& sum : odd) sum = V::zero();
  const auto add = [&](typename V::Floats* to, const uint8_t* from, size_t first, size_t chunks) {
    typename V::Ints high[R], low[R];
    for (size_t r = 0; r < R; ++r) high[r] = low[r] = V::no_products();
    __builtin_prefetch(from + kForesight);
    for (size_t i = 0; i < chunks; ++i) {
      const typename V::Ints both = V::load(from + i * kChunk<V>);
      const typename V::Ints evens = V::low_nibbles(both), odds = V::high_nibbles(both);
      for (size_t r = 0; r < R; ++r) {
        const size_t at = r * x.width + 2 * (first + i) * kChunk<V>;
        high[r] = V::dot_all(high[r], evens, odds, x.values + at);
        if constexpr (Split) low[r] = V::dot_all(low[r], evens, odds, x.low + at);
      }
    }
    for (size_t r = 0; r < R; ++r) {
      if constexpr (Split) high[r] = V::join(high[r], low[r]);
      to[r] = V::mul_add(V::to_float(high[r]), V::template spread<B>(scales + r * x.blocks + first / C * B), to[r]);
    }
  };
  typename V::Floats* second = R == 1 ? odd : even;  // the sum of a row that is alone would wait for itself
  const size_t whole = bytes / kChunk<V> / C * C;
  size_t chunk = 0;
  for (; chunk + 2 * C <= whole; chunk += 2 * C) {
    add(even, codes + chunk * kChunk<V>, chunk, C);
    add(second, codes + (chunk + C) * kChunk<V>, chunk + C, C);
  }
  if (chunk < whole) add(even, codes + chunk * kChunk<V>, chunk, C);
  const size_t left = bytes - whole * kChunk<V>;  // a part of a chunk of several blocks
  if (left > 0) {
    const uint8_t* from = codes + whole * kChunk<V>;
    uint8_t last[kChunk<V>];
    if (!beyond) {
      std::memset(last, 0, sizeof last);
      from = static_cast<const uint8_t*>(std::memcpy(last, from, left));
    }
    add(second, from, whole, 1);
  }
  for (size_t r = 0; r < R; ++r) out[r * n] = V::sum(V::add(even[r], odd[r]));
}

// Whether that is the way: several rows repay the sums over lanes at the end of every output where it is long, and
// where each is one plane.
template <class V>
bool is_few(const Int4Matrix& m, const Int4Input& input) {
  constexpr size_t kLong = 1024;  // bytes
  const bool long_outputs = m.blocks() * m.block / 2 >= kLong;
  return input.rows == 1 || (input.rows <= V::kFewRows && long_outputs && input.low == nullptr);
}

size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

// Where the next row's values begin.
template <class V>
size_t few_width(const Int4Matrix& m) {
  return round_up(m.blocks() * m.block, 2 * kChunk<V>);
}

template <class V, bool Split, size_t Block, size_t R>
void multiply_outputs(const Int4Matrix& m, const Int4Input& input, float* out, size_t begin, size_t end,
                      float* scratch) {
  constexpr size_t kWeights = 2 * kChunk<V>, kBlocks = kWeights > Block ? kWeights / Block : 1;
  constexpr size_t kChunks = Block > kWeights ? Block / kWeights : 1;
  const size_t blocks = m.blocks(), bytes = blocks * Block / 2, zero_bytes = (blocks + 1) / 2;
  const size_t padded = round_up(blocks, V::kLanes);
  float *of_x = scratch + R * padded, *sums = of_x + R * padded;
  std::memset(of_x, 0, 2 * R * padded * sizeof(float));
  for (size_t r = 0; r < R; ++r) {
    std::memcpy(of_x + r * padded, input.scales + r * blocks, blocks * sizeof(float));
    std::memcpy(sums + r * padded, input.sums + r * blocks, blocks * sizeof(float));
  }
  const FewRows x = {input.values, input.low, of_x, sums, few_width<V>(m), padded};
  const auto may_reach = [&](size_t output) {
    return inside(m, output, blocks, padded) && inside(m, output, zero_bytes, padded / 2) &&
           inside(m, output, bytes, round_up(bytes, kChunk<V>));
  };
  // Whole registers are read of all but the last outputs of the matrix: partial ones would have to be put together in
  // memory first, for which a short output's product has no time.
  size_t whole = end;
  while (whole > begin && !may_reach(whole - 1)) --whole;
  for (size_t output = begin; output < end; ++output) {
    const bool beyond = output < whole;
    typename V::Floats offsets[R];
    prepare<V, R>(m, x, output, beyond, scratch, offsets);
    multiply_one<V, Split, kBlocks, kChunks, R>(m.codes + output * bytes, bytes, x, beyond, scratch, offsets,
                                                out + output, m.n);
  }
}

template <class V>
void quantize(const float* x, size_t row, const Int4Matrix& m, const Int4Input& input) {
  const size_t width = m.blocks() * m.block;
  if (!is_few<V>(m, input)) return quantize_row<V>(x, row, m, input, width);
  const size_t padded = few_width<V>(m);
  quantize_row<V>(x, row, m, input, padded);
  order_chunks<V>(input.values + row * padded, width);
  if (input.low != nullptr) order_chunks<V>(input.low + row * padded, width);
}

template <class V, bool Split, size_t R = Split ? 1 : V::kFewRows>
void multiply_few(const Int4Matrix& m, const Int4Input& input, float* out, size_t begin, size_t end, float* scratch) {
  static_assert(R <= Int4Input::kFew, "scratch has no room for more");
  if constexpr (R > 1) {
    if (input.rows < R) return multiply_few<V, Split, R - 1>(m, input, out, begin, end, scratch);
  }
  switch (m.block) {
    case 32: return multiply_outputs<V, Split, 32, R>(m, input, out, begin, end, scratch);
    case 64: return multiply_outputs<V, Split, 64, R>(m, input, out, begin, end, scratch);
    default: return multiply_outputs<V, Split, 128, R>(m, input, out, begin, end, scratch);
  }
}

template <class V, bool Split>
void multiply_planes(const Int4Matrix& m, const Int4Input& input, float* out, size_t first, size_t last,
                     uint8_t* scratch) {
  if (!is_few<V>(m, input)) return multiply_tiles<V, Split>(m, input, out, first, last, scratch);
  const size_t begin = first * V::kLanes, end = last * V::kLanes < m.n ? last * V::kLanes : m.n;
  multiply_few<V, Split>(m, input, out, begin, end, reinterpret_cast<float*>(scratch));
}

template <class V>
void multiply(const Int4Matrix& m, const Int4Input& input, float* out, size_t first, size_t last, uint8_t* scratch) {
  if (input.low != nullptr) return multiply_planes<V, true>(m, input, out, first, last, scratch);
  multiply_planes<V, false>(m, input, out, first, last, scratch);
}

}  // namespace
}  // namespace blip2rt
