// The loops of vectors.h in the compiler's own vectors. A file defines BLIP2RT_LANES, and BLIP2RT_ROWS, the rows of a
// product that its registers hold, and includes this after BLIP2RT_TARGET.
//
// Everything has internal linkage and no function takes a vector by value, see kernels/attention/attention_tile.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "executor/vectors.h"

namespace blip2rt {
namespace {

constexpr size_t kLanes = BLIP2RT_LANES, kRows = BLIP2RT_ROWS, kPanelVectors = 2;
typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(kLanes * sizeof(int32_t))));

inline void load(const float* from, Floats& to) { std::memcpy(&to, from, sizeof to); }
inline void store(const Floats& from, float* to) { std::memcpy(to, &from, sizeof from); }
inline void load_part(const float* from, size_t count, Floats& to) {
  to = Floats{};
  std::memcpy(&to, from, count * sizeof(float));
}
inline void store_part(const Floats& from, size_t count, float* to) { std::memcpy(to, &from, count * sizeof(float)); }

inline float total(const Floats& lanes) {
  float parts[kLanes], sum = 0;
  std::memcpy(parts, &lanes, sizeof parts);
  for (const float part : parts) sum += part;
  return sum;
}

// Replaces v by e^v, with a relative error of 2e-7: a series for |r| <= log(2) / 2, times a power of two. Writes 0
// below e^-87 and infinity above e^88. NaN stays.
inline void exponential(Floats& v) {
  constexpr float kLeast = -87.0f, kMost = 88.0f, kLog2e = 1.44269504f, kLn2High = 0.693359375f,
                  kLn2Low = -2.12194440e-4f, kRounding = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Floats zero = {}, least = kLeast - zero, most = kMost - zero, infinite = __builtin_inff() - zero, x = v;
  v = v < least ? least : v;
  v = v > most ? most : v;
  const Floats power = (v * kLog2e + kRounding) - kRounding;
  const Floats r = (v - power * kLn2High) - power * kLn2Low;
  Floats e = r * (1.0f / 720) + 1.0f / 120;
  e = e * r + 1.0f / 24;
  e = e * r + 1.0f / 6;
  e = e * r + 0.5f;
  e = e * r + 1.0f;
  e = e * r + 1.0f;
  const Floats exponent = power * 8388608.0f + 1065353216.0f;  // 2^23 * (127 + power)
  const Ints bits = __builtin_convertvector(exponent, Ints);
  Floats scale;
  std::memcpy(&scale, &bits, sizeof scale);
  v = e * scale;
  v = x < least ? zero : v;
  v = x > most ? infinite : v;
}

inline void sigmoid(Floats& v) {
  Floats e = -v;
  exponential(e);
  v = 1.0f / (1.0f + e);
}

inline void hyperbolic_tangent(Floats& v) {
  Floats e = v * 2.0f;
  exponential(e);
  v = 1.0f - 2.0f / (e + 1.0f);
}

// Abramowitz and Stegun 7.1.26: |error| <= 1.5e-7.
inline void error_function(Floats& v) {
  const Floats zero = {}, x = v < zero ? -v : v, t = 1.0f / (x * 0.3275911f + 1.0f);
  Floats e = -(x * x), p = t * 1.061405429f - 1.453152027f;
  exponential(e);
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const Floats found = 1.0f - p * t * e;
  v = v < zero ? -found : found;
}

inline void gelu(Floats& v) {
  Floats e = v * 0.70710678f;
  error_function(e);
  v = v * 0.5f * (e + 1.0f);
}

inline void gelu_tanh(Floats& v) {
  Floats t = (v * v * v * 0.044715f + v) * 0.79788456f;
  hyperbolic_tangent(t);
  v = v * 0.5f * (t + 1.0f);
}

template <class F>
inline void each(const float* x, size_t count, float* out, const F& apply) {
  size_t i = 0;
  Floats v;
  for (; i + kLanes <= count; i += kLanes) {
    load(x + i, v);
    apply(v);
    store(v, out + i);
  }
  if (i == count) return;
  load_part(x + i, count - i, v);
  apply(v);
  store_part(v, count - i, out + i);
}

void unary(Unary kind, const float* x, size_t count, float* out) {
  const Floats zero = {};
  switch (kind) {
    case Unary::kAbs: return each(x, count, out, [&](Floats& v) { v = v < zero ? -v : v; });
    case Unary::kErf: return each(x, count, out, [](Floats& v) { error_function(v); });
    case Unary::kExp: return each(x, count, out, [](Floats& v) { exponential(v); });
    case Unary::kGelu: return each(x, count, out, [](Floats& v) { gelu(v); });
    case Unary::kGeluTanh: return each(x, count, out, [](Floats& v) { gelu_tanh(v); });
    case Unary::kNeg: return each(x, count, out, [](Floats& v) { v = -v; });
    case Unary::kRelu: return each(x, count, out, [&](Floats& v) { v = v < zero ? zero : v; });
    case Unary::kSigmoid: return each(x, count, out, [](Floats& v) { sigmoid(v); });
    case Unary::kSqrt:
      for (size_t i = 0; i < count; ++i) out[i] = __builtin_sqrtf(x[i]);
      return;
    case Unary::kTanh: return each(x, count, out, [](Floats& v) { hyperbolic_tangent(v); });
  }
}

template <class F>
inline void each_pair(const float* a, size_t a_step, const float* b, size_t b_step, size_t count, float* out,
                      const F& apply) {
  Floats x = {}, y = {};
  if (count > 0 && a_step == 0) x = *a - Floats{};
  if (count > 0 && b_step == 0) y = *b - Floats{};
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    if (a_step != 0) load(a + i, x);
    if (b_step != 0) load(b + i, y);
    Floats z = x;
    apply(z, y);
    store(z, out + i);
  }
  if (i == count) return;
  if (a_step != 0) load_part(a + i, count - i, x);
  if (b_step != 0) load_part(b + i, count - i, y);
  apply(x, y);
  store_part(x, count - i, out + i);
}

void binary(Binary kind, const float* a, size_t a_step, const float* b, size_t b_step, size_t count, float* out) {
  const auto run = [&](const auto& apply) { each_pair(a, a_step, b, b_step, count, out, apply); };
  switch (kind) {
    case Binary::kAdd: return run([](Floats& x, const Floats& y) { x += y; });
    case Binary::kSub: return run([](Floats& x, const Floats& y) { x -= y; });
    case Binary::kMul: return run([](Floats& x, const Floats& y) { x *= y; });
    case Binary::kDiv: return run([](Floats& x, const Floats& y) { x /= y; });
    case Binary::kMin: return run([](Floats& x, const Floats& y) { x = y < x ? y : x; });
    case Binary::kMax: return run([](Floats& x, const Floats& y) { x = y > x ? y : x; });
  }
}

float sum(const float* x, size_t count) {
  Floats sums = {}, v;
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    load(x + i, v);
    sums += v;
  }
  load_part(x + i, count - i, v);
  return total(sums + v);
}

void softmax(const float* x, size_t count, float* out) {
  float largest = x[0];
  size_t i = 0;
  if (count >= kLanes) {
    Floats best, v;
    load(x, best);
    for (i = kLanes; i + kLanes <= count; i += kLanes) {
      load(x + i, v);
      best = v > best ? v : best;
    }
    for (size_t lane = 0; lane < kLanes; ++lane) largest = best[lane] > largest ? best[lane] : largest;
  }
  for (; i < count; ++i) largest = x[i] > largest ? x[i] : largest;
  each(x, count, out, [&](Floats& v) {
    v -= largest;
    exponential(v);
  });
  const float scale = 1 / sum(out, count);
  each(out, count, out, [&](Floats& v) { v *= scale; });
}

void normalize(const float* x, size_t count, const float* weight, const float* bias, float epsilon, bool centers,
               float* out) {
  const float mean = centers ? sum(x, count) / static_cast<float>(count) : 0;
  Floats squares = {}, v, w, b = {};
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    load(x + i, v);
    v -= mean;
    squares += v * v;
  }
  float variance = total(squares);
  for (; i < count; ++i) variance += (x[i] - mean) * (x[i] - mean);
  const float scale = 1 / __builtin_sqrtf(variance / static_cast<float>(count) + epsilon);
  for (i = 0; i + kLanes <= count; i += kLanes) {
    load(x + i, v);
    load(weight + i, w);
    if (bias != nullptr) load(bias + i, b);
    store((v - mean) * scale * w + b, out + i);
  }
  for (; i < count; ++i) out[i] = (x[i] - mean) * scale * weight[i] + (bias == nullptr ? 0 : bias[i]);
}

// R rows and V vectors of columns.
template <size_t R, size_t V>
inline void multiply_tile(const FloatProduct& p, size_t row, size_t column, size_t columns) {
  Floats sums[R][V] = {};
  const float *x = p.x + row * p.x_stride, *b = p.b + column;
  for (size_t i = 0; i < p.k; ++i, b += p.b_stride) {
    Floats w[V];
    for (size_t v = 0; v < V; ++v) load(b + v * kLanes, w[v]);
    for (size_t r = 0; r < R; ++r) {
      for (size_t v = 0; v < V; ++v) sums[r][v] += x[r * p.x_stride + i] * w[v];
    }
  }
  for (size_t r = 0; r < R; ++r) {
    float* out = p.out + (row + r) * p.out_stride + column;
    if (columns == V * kLanes) {
      for (size_t v = 0; v < V; ++v) store(sums[r][v], out + v * kLanes);
    } else {
      std::memcpy(out, sums[r], columns * sizeof(float));
    }
  }
}

template <size_t V>
inline void multiply_columns(const FloatProduct& p, size_t column, size_t columns) {
  size_t row = 0;
  if (V == kPanelVectors) {
    for (; row + kRows <= p.rows; row += kRows)
      multiply_tile<V == kPanelVectors ? kRows : 1, V>(p, row, column, columns);
  }
  for (; row + 4 <= p.rows; row += 4) multiply_tile<4, V>(p, row, column, columns);
  for (; row + 2 <= p.rows; row += 2) multiply_tile<2, V>(p, row, column, columns);
  for (; row < p.rows; ++row) multiply_tile<1, V>(p, row, column, columns);
}

void multiply(const FloatProduct& p) { multiply_columns<kPanelVectors>(p, 0, p.columns); }

size_t multiply_few(const FloatProduct& p) {
  size_t column = 0;
  for (; column + 8 * kLanes <= p.columns && p.rows == 1; column += 8 * kLanes)
    multiply_tile<1, 8>(p, 0, column, 8 * kLanes);
  for (; column + 2 * kLanes <= p.columns; column += 2 * kLanes) multiply_columns<2>(p, column, 2 * kLanes);
  for (; column + kLanes <= p.columns; column += kLanes) multiply_columns<1>(p, column, kLanes);
  return column;
}

// Computes `columns` outputs of a row, whole vectors. Separate pointers, because the compiler reads fields again and
// again.
template <class F>
inline void finish_row(float* x, const float* bias, const float* factor, const float* residual, size_t columns,
                       const F& activate) {
  for (size_t i = 0; i < columns; i += kLanes) {
    Floats v, b = {}, f, r;
    load(x + i, v);
    if (bias != nullptr) load(bias + i, b);
    v += b;
    activate(v);
    if (factor != nullptr) load(factor + i, f), v *= f;
    if (residual != nullptr) load(residual + i, r), v += r;
    store(v, x + i);
  }
}

template <class F>
inline void finish_rows(const FloatEnding& e, const F& activate) {
  const size_t whole = e.columns / kLanes * kLanes, left = e.columns - whole;
  const auto at = [&](const float* operand, size_t i) { return operand == nullptr ? nullptr : operand + i; };
  for (size_t row = 0; row < e.rows; ++row) {
    const size_t begin = row * e.stride, end = begin + whole;
    finish_row(e.x + begin, e.bias, at(e.factor, begin), at(e.residual, begin), whole, activate);
    if (left == 0) continue;
    const float* from[4] = {e.x + end, at(e.bias, whole), at(e.factor, end), at(e.residual, end)};
    float copy[4][kLanes] = {};
    for (size_t i = 0; i < 4; ++i) {
      if (from[i] != nullptr) std::memcpy(copy[i], from[i], left * sizeof(float));
    }
    finish_row(copy[0], from[1] == nullptr ? nullptr : copy[1], from[2] == nullptr ? nullptr : copy[2],
               from[3] == nullptr ? nullptr : copy[3], kLanes, activate);
    std::memcpy(e.x + end, copy[0], left * sizeof(float));
  }
}

void finish(const FloatEnding& e) {
  const Floats zero = {};
  switch (e.activation) {
    case Activation::kNone: return finish_rows(e, [](Floats&) {});
    case Activation::kGelu: return finish_rows(e, [](Floats& v) { gelu(v); });
    case Activation::kGeluTanh: return finish_rows(e, [](Floats& v) { gelu_tanh(v); });
    case Activation::kRelu: return finish_rows(e, [&](Floats& v) { v = v < zero ? zero : v; });
    case Activation::kSwish:
      return finish_rows(e, [&](Floats& v) {
        Floats s = v * e.beta;
        sigmoid(s);
        v *= s;
      });
  }
}

#define BLIP2RT_VECTOR_LOOPS(name) \
  {name, kPanelVectors * kLanes, unary, binary, softmax, normalize, sum, multiply, multiply_few, finish}

}  // namespace
}  // namespace blip2rt
