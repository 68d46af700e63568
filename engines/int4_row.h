// The product of int4_matmul.h for one row of activations, which decides how fast a token is: one output after the
// other, each a single stream of memory that the processor foresees. Included behind int4_tile.h, by the same rules.
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

// The row's scales and sums, zeros up to a whole register behind the last.
struct Padded {
  const float *scales, *sums;
};

// For each block of an output its scale times the activations', zeros up to a whole register behind the last; -> what
// the zero points take from the product, as sums of lanes. `beyond`: reading may reach into the next outputs, which the
// zeros make nothing of.
template <class V>
typename V::Floats prepare_row(const Int4Matrix& m, const Padded& x, size_t output, bool beyond, float* scales) {
  const size_t blocks = m.blocks(), zero_bytes = (blocks + 1) / 2;
  const uint16_t* halves = m.scales + output * blocks;
  const uint8_t* zeros = m.zero_points + output * zero_bytes;
  typename V::Floats offset = V::zero();
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
    V::store(scales + block, V::mul(of_weights, V::load_floats(x.scales + block)));
    offset = V::mul_sub(V::mul(of_weights, V::load_nibbles(zero)), V::load_floats(x.sums + block), offset);
  }
  return offset;
}

// Sums of the products of chunks of codes with the activations.
template <class V, bool Split>
struct Products {
  const Int4Input& input;
  typename V::Ints high = V::no_products(), low = V::no_products();

  void add(typename V::Ints codes, size_t chunk) {
    const typename V::Ints first = V::low_nibbles(codes), second = V::high_nibbles(codes);
    high = V::dot_all(high, first, second, input.values + 2 * chunk * kChunk<V>);
    if constexpr (Split) low = V::dot_all(low, first, second, input.low + 2 * chunk * kChunk<V>);
  }

  typename V::Floats sum() const {
    if constexpr (Split) return V::to_float(V::join(high, low));
    return V::to_float(high);
  }
};

// One output, added to the sums of lanes `even`. A chunk holds B blocks, or a block C chunks; the other of the two
// is 1.
template <class V, bool Split, size_t B, size_t C>
float multiply_one(const uint8_t* codes, size_t bytes, const Int4Input& input, bool beyond, const float* scales,
                   typename V::Floats even) {
  typename V::Floats odd = V::zero();  // one sum would wait for itself
  const auto add = [&](typename V::Floats& to, const uint8_t* from, size_t first, size_t chunks) {
    Products<V, Split> products{input};
    __builtin_prefetch(from + kForesight);
    for (size_t i = 0; i < chunks; ++i) products.add(V::load(from + i * kChunk<V>), first + i);
    to = V::mul_add(products.sum(), V::template spread<B>(scales + first / C * B), to);
  };
  const size_t whole = bytes / kChunk<V> / C * C;
  size_t chunk = 0;
  for (; chunk + 2 * C <= whole; chunk += 2 * C) {
    add(even, codes + chunk * kChunk<V>, chunk, C);
    add(odd, codes + (chunk + C) * kChunk<V>, chunk + C, C);
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
    add(odd, from, whole, 1);
  }
  return V::sum(V::add(even, odd));
}

template <class V, bool Split, size_t Block>
void multiply_outputs(const Int4Matrix& m, const Int4Input& input, float* out, size_t begin, size_t end,
                      float* scratch) {
  constexpr size_t kWeights = 2 * kChunk<V>, kBlocks = kWeights > Block ? kWeights / Block : 1;
  constexpr size_t kChunks = Block > kWeights ? Block / kWeights : 1;
  const auto round_up = [](size_t value, size_t unit) { return (value + unit - 1) / unit * unit; };
  const size_t blocks = m.blocks(), bytes = blocks * Block / 2, zero_bytes = (blocks + 1) / 2;
  const size_t padded = round_up(blocks, V::kLanes);
  float *of_x = scratch + padded, *sums = of_x + padded;
  std::memset(of_x, 0, 2 * padded * sizeof(float));
  std::memcpy(of_x, input.scales, blocks * sizeof(float));
  std::memcpy(sums, input.sums, blocks * sizeof(float));
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
    const typename V::Floats offset = prepare_row<V>(m, {of_x, sums}, output, beyond, scratch);
    out[output] =
        multiply_one<V, Split, kBlocks, kChunks>(m.codes + output * bytes, bytes, input, beyond, scratch, offset);
  }
}

template <class V>
void quantize(const float* x, size_t row, const Int4Matrix& m, const Int4Input& input) {
  quantize_row<V>(x, row, m, input);
  if (input.rows != 1) return;
  order_chunks<V>(input.values, m.blocks() * m.block);
  if (input.low != nullptr) order_chunks<V>(input.low, m.blocks() * m.block);
}

template <class V, bool Split>
void multiply_planes(const Int4Matrix& m, const Int4Input& input, float* out, size_t first, size_t last,
                     uint8_t* scratch) {
  if (input.rows != 1) return multiply_tiles<V, Split>(m, input, out, first, last, scratch);
  const size_t begin = first * V::kLanes, end = last * V::kLanes < m.n ? last * V::kLanes : m.n;
  float* scales = reinterpret_cast<float*>(scratch);
  switch (m.block) {
    case 32: return multiply_outputs<V, Split, 32>(m, input, out, begin, end, scales);
    case 64: return multiply_outputs<V, Split, 64>(m, input, out, begin, end, scales);
    default: return multiply_outputs<V, Split, 128>(m, input, out, begin, end, scales);
  }
}

template <class V>
void multiply(const Int4Matrix& m, const Int4Input& input, float* out, size_t first, size_t last, uint8_t* scratch) {
  if (input.low != nullptr) return multiply_planes<V, true>(m, input, out, first, last, scratch);
  multiply_planes<V, false>(m, input, out, first, last, scratch);
}

}  // namespace
}  // namespace blip2rt
