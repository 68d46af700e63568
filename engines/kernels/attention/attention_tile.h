// Attention in the compiler's own vectors. A file defines BLIP2RT_LANES and includes this after BLIP2RT_TARGET.
//
// Everything has internal linkage, because each including file compiles it for another processor. For the same reason
// it uses no templates of the standard library: the linker keeps a single copy of these, which might be this file's.
// Functions take and return no vectors by value, because instruction sets pass them differently.
#pragma once

#include <cstring>

#include "kernels/attention/attention.h"
#include "kernels/vectors.h"

namespace blip2rt {
namespace {

constexpr size_t kLanes = BLIP2RT_LANES;  // floats per register: 4 or 8
typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef float Quarter __attribute__((vector_size(4 * sizeof(float))));

inline size_t smaller(size_t a, size_t b) { return a < b ? a : b; }
inline size_t larger(size_t a, size_t b) { return a < b ? b : a; }

inline void fill(float* from, const float* to, float value) {
  for (; from != to; ++from) *from = value;
}

inline void load(const float* from, Floats& to) { std::memcpy(&to, from, sizeof to); }
inline void store(const Floats& from, float* to) { std::memcpy(to, &from, sizeof from); }

inline void add(float* to, const Floats& from) {
  Floats sum;
  load(to, sum);
  sum += from;
  store(sum, to);
}

// Adds the upper half of eight lanes to the lower half; copies four lanes.
inline void add_halves(const Floats& lanes, Quarter& to) {
  Quarter parts[kLanes / 4];
  std::memcpy(parts, &lanes, sizeof parts);
  to = kLanes == 4 ? parts[0] : parts[0] + parts[kLanes / 4 - 1];
}

inline float horizontal_sum(const Floats& lanes) {
  Quarter four;
  add_halves(lanes, four);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// Writes the horizontal sum of each of four vectors.
inline void horizontal_sums(const Floats* four, float* to) {
  Quarter sums[4];
  for (size_t i = 0; i < 4; ++i) add_halves(four[i], sums[i]);
  const Quarter first = BLIP2RT_SHUFFLE(sums[0], sums[1], 0, 4, 1, 5) + BLIP2RT_SHUFFLE(sums[0], sums[1], 2, 6, 3, 7);
  const Quarter second = BLIP2RT_SHUFFLE(sums[2], sums[3], 0, 4, 1, 5) + BLIP2RT_SHUFFLE(sums[2], sums[3], 2, 6, 3, 7);
  const Quarter all = BLIP2RT_SHUFFLE(first, second, 0, 1, 4, 5) + BLIP2RT_SHUFFLE(first, second, 2, 3, 6, 7);
  std::memcpy(to, &all, sizeof all);
}

// Sets lanes to zero where `which` is zero.
inline void mask_lanes(const Ints& which, Floats& of) {
  Ints bits;
  std::memcpy(&bits, &of, sizeof bits);
  bits &= which;
  std::memcpy(&of, &bits, sizeof of);
}

// Computes the scores of R queries (R, width) for N consecutive keys; N is 1 or 4.
template <size_t R, size_t N>
void dot(const float* queries, const float* keys, size_t width, float* scores, size_t score_step) {
  Floats sums[R][N] = {};
  for (size_t i = 0; i < width; i += kLanes) {
    Floats key[N];
    for (size_t n = 0; n < N; ++n) load(keys + n * width + i, key[n]);
    for (size_t r = 0; r < R; ++r) {
      Floats query;
      load(queries + r * width + i, query);
      for (size_t n = 0; n < N; ++n) sums[r][n] += query * key[n];
    }
  }
  for (size_t r = 0; r < R; ++r) {
    if (N == 4) {
      horizontal_sums(sums[r], scores + r * score_step);
    } else {
      scores[r * score_step] = horizontal_sum(sums[r][0]);
    }
  }
}

template <size_t R>
void compute_scores(const float* queries, const float* keys, size_t count, size_t width, float* scores, size_t step) {
  constexpr size_t kPair = R == 1 ? 1 : 2;  // more do not fit into the registers
  const size_t whole = count / 4 * 4;
  for (size_t n = 0; n < whole; n += 4) {
    for (size_t r = 0; r < R; r += kPair) {
      dot<kPair, 4>(queries + r * width, keys + n * width, width, scores + r * step + n, step);
    }
  }
  for (size_t n = whole; n < count; ++n) {
    for (size_t r = 0; r < R; r += kPair) {
      dot<kPair, 1>(queries + r * width, keys + n * width, width, scores + r * step + n, step);
    }
  }
}

// out (R, width) += weights (R, count) * values (count, width), for U vectors of each row.
template <size_t R, size_t U>
void weighted_sum_part(const float* weights, size_t weight_step, const float* values, size_t count, size_t width,
                       float* out) {
  Floats sums[R][U] = {};
  for (size_t n = 0; n < count; ++n) {
    Floats value[U];
    for (size_t u = 0; u < U; ++u) load(values + n * width + u * kLanes, value[u]);
    for (size_t r = 0; r < R; ++r) {
      for (size_t u = 0; u < U; ++u) sums[r][u] += weights[r * weight_step + n] * value[u];
    }
  }
  for (size_t r = 0; r < R; ++r) {
    for (size_t u = 0; u < U; ++u) add(out + r * width + u * kLanes, sums[r][u]);
  }
}

template <size_t R>
void weighted_sum(const float* weights, size_t weight_step, const float* values, size_t count, size_t width,
                  float* out) {
  constexpr size_t kVectorsAtOnce = R == 1 ? 4 : 2;
  size_t i = 0;
  for (; i + kVectorsAtOnce * kLanes <= width; i += kVectorsAtOnce * kLanes) {
    weighted_sum_part<R, kVectorsAtOnce>(weights, weight_step, values + i, count, width, out + i);
  }
  for (; i < width; i += kLanes) weighted_sum_part<R, 1>(weights, weight_step, values + i, count, width, out + i);
}

// Replaces each x by e^(x - largest) and returns the sum. `count` is a multiple of kLanes; no x exceeds `largest`.
// Relative error 2e-7: a series for |r| <= log(2) / 2, times a power of two. Below e^-87 it writes 0.
inline float exponentials(float* x, size_t count, float largest) {
  constexpr float kLeast = -87.0f, kLog2e = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRounding = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  Floats total = {};
  for (size_t i = 0; i < count; i += kLanes) {
    Floats v;
    load(x + i, v);
    v -= largest;
    const Ints nonzero = ~(v <= kLeast);  // keeps NaN
    mask_lanes(nonzero, v);
    const Floats power = (v * kLog2e + kRounding) - kRounding;
    const Floats r = (v - power * kLn2High) - power * kLn2Low;
    Floats e = r * (1.0f / 720) + 1.0f / 120;
    e = e * r + 1.0f / 24;
    e = e * r + 1.0f / 6;
    e = e * r + 0.5f;
    e = e * r + 1.0f;
    e = e * r + 1.0f;
    // Builds the power of two from its exponent bits: 2^23 * (127 + power), which a float represents exactly.
    const Floats exponent = power * 8388608.0f + 1065353216.0f;
    const Ints bits = __builtin_convertvector(exponent, Ints);
    Floats scale;
    std::memcpy(&scale, &bits, sizeof scale);
    e *= scale;
    mask_lanes(nonzero, e);
    store(e, x + i);
    total += e;
  }
  return horizontal_sum(total);
}

// Rotates one head by its position: x of the first half and y of the second become x cos - y sin and y cos + x sin.
inline void rotate(const Attention& a, const float* from, size_t position, float factor, float* to) {
  const size_t half = a.rotary_dims / 2;
  const float *cos = a.cos + position * half, *sin = a.sin + position * half;
  for (size_t i = 0; i < half; ++i) {
    const float x = from[i] * factor, y = from[half + i] * factor;
    to[i] = x * cos[i] - y * sin[i];
    to[half + i] = y * cos[i] + x * sin[i];
  }
  for (size_t i = a.rotary_dims; i < a.width; ++i) to[i] = from[i] * factor;
}

// The offset in the cache of a head of the position at `place`.
inline size_t offset(const Attention& a, size_t place, size_t kv_head) {
  return (place + kv_head * a.capacity) * a.width;
}

void append(const Attention& a, size_t row, size_t kv_head) {
  const CacheRow& where = a.cache_rows[row];
  const size_t to = offset(a, static_cast<size_t>(where.past_start) + static_cast<size_t>(where.past_length), kv_head);
  for (size_t i = 0; i < a.length; ++i) {
    const size_t from = a.key_strides.at(row, i, kv_head);
    rotate(a, a.key + from, a.visible(row, i) - 1, 1.0f, a.keys + to + i * a.width);
    std::memcpy(a.values + to + i * a.width, a.value + from, a.width * sizeof(float));
  }
}

// Returns the largest of `count` floats.
inline float max_element(const float* x, size_t count) {
  Floats best = x[0] - Floats{};
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Floats v;
    load(x + i, v);
    best = v > best ? v : best;
  }
  float largest = best[0];
  for (size_t lane = 1; lane < kLanes; ++lane) largest = best[lane] > largest ? best[lane] : largest;
  for (; i < count; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

// The row of the batch, new position and head of a query.
struct Query {
  size_t row, position, head;

  Query(const Attention& a, size_t kv_head, size_t index) {
    const size_t group_size = a.group_size();
    row = index / (a.length * group_size);
    position = index / group_size % a.length;
    head = kv_head * group_size + index % group_size;
  }
};

// Replaces a query's scores by their exponentials and returns the sum. Writes 0 for the other positions between `from`
// and `to`, multiples of kLanes around those that the query attends to.
inline float softmax(const Attention& a, const Query& q, float* scores, size_t from, size_t to) {
  const size_t first = a.first_visible(q.row, q.position), end = a.visible(q.row, q.position);
  if (a.softcap != 0) {
    for (size_t n = first; n < end; ++n) scores[n] = a.softcap * __builtin_tanhf(scores[n] / a.softcap);
  }
  if (a.bias != nullptr) {
    const float* bias = a.bias + a.bias_strides.at(q.row, q.position, q.head);
    for (size_t n = first; n < end; ++n) scores[n] += bias[n];
  }
  fill(scores + from, scores + first, -__builtin_inff());
  fill(scores + end, scores + to, -__builtin_inff());
  return exponentials(scores + from, to - from, max_element(scores + first, end - first));
}

template <size_t R>
struct Count {
  static constexpr size_t value = R;
};

// Computes R queries of one kv head, from `index` on.
template <size_t R>
void attend_queries(const Attention& a, size_t kv_head, size_t index, float* scratch) {
  // Positions count from 0 in the prompt and continue in the answer.
  size_t prompt_start[R], answer_start[R], prompt[R], end[R], from = ~size_t{0}, to = 0;
  bool one_prompt = true, one_row = true;
  for (size_t r = 0; r < R; ++r) {
    const Query q(a, kv_head, index + r);
    const CacheRow& where = a.cache_rows[q.row];
    prompt_start[r] = offset(a, static_cast<size_t>(where.prompt_start), kv_head);
    answer_start[r] = offset(a, static_cast<size_t>(where.past_start), kv_head);
    prompt[r] = static_cast<size_t>(where.prompt_length);
    end[r] = a.visible(q.row, q.position);
    from = smaller(from, a.first_visible(q.row, q.position));
    to = larger(to, end[r]);
    one_prompt = one_prompt && prompt_start[r] == prompt_start[0] && prompt[r] == prompt[0];
    one_row = one_row && answer_start[r] == answer_start[0] && prompt[r] == prompt[0];
  }
  from = from / kLanes * kLanes;
  const size_t step = (to + kLanes - 1) / kLanes * kLanes;
  float *queries = scratch, *outs = queries + R * a.width, *scores = outs + R * a.width, totals[R];
  for (size_t r = 0; r < R; ++r) {
    const Query q(a, kv_head, index + r);
    const float* x = a.query + a.query_strides.at(q.row, q.position, q.head);
    rotate(a, x, end[r] - 1, a.scale, queries + r * a.width);
  }
  // Calls work(number of queries, first query, offset in the cache, first position, end of the positions).
  const auto each_part = [&](const auto& work) {
    const size_t skipped = smaller(from, prompt[0]);
    if (one_prompt) {
      work(Count<R>{}, 0, prompt_start[0] + skipped * a.width, skipped, prompt[0]);
    } else {
      for (size_t r = 0; r < R; ++r) {
        const size_t first = smaller(from, prompt[r]);
        work(Count<1>{}, r, prompt_start[r] + first * a.width, first, prompt[r]);
      }
    }
    if (one_row) {
      const size_t first = larger(from, prompt[0]);
      work(Count<R>{}, 0, answer_start[0] + (first - prompt[0]) * a.width, first, to);
    } else {
      for (size_t r = 0; r < R; ++r) {
        const size_t first = larger(from, prompt[r]);
        work(Count<1>{}, r, answer_start[r] + (first - prompt[r]) * a.width, first, end[r]);
      }
    }
  };
  each_part([&](auto count, size_t r, size_t at, size_t first, size_t last) {
    compute_scores<count.value>(queries + r * a.width, a.keys + at, last - first, a.width, scores + r * step + first,
                                step);
  });
  for (size_t r = 0; r < R; ++r) {
    totals[r] = softmax(a, Query(a, kv_head, index + r), scores + r * step, from, step);
  }
  fill(outs, outs + R * a.width, 0.0f);
  each_part([&](auto count, size_t r, size_t at, size_t first, size_t last) {
    weighted_sum<count.value>(scores + r * step + first, step, a.values + at, last - first, a.width,
                              outs + r * a.width);
  });
  for (size_t r = 0; r < R; ++r) {
    const Query q(a, kv_head, index + r);
    float* out = a.out + a.out_strides.at(q.row, q.position, q.head);
    for (size_t i = 0; i < a.width; ++i) out[i] = outs[r * a.width + i] / totals[r];
  }
}

void attend(const Attention& a, size_t kv_head, size_t block, float* scratch) {
  const size_t index = block * kQueryBlock, queries = a.rows * a.length * a.group_size();
  if (index + kQueryBlock <= queries) return attend_queries<kQueryBlock>(a, kv_head, index, scratch);
  for (size_t one = index; one < queries; ++one) attend_queries<1>(a, kv_head, one, scratch);
}

}  // namespace
}  // namespace blip2rt
