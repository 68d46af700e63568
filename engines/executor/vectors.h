// Loops over floats, compiled for each instruction set.
#pragma once

#include <cstddef>

namespace blip2rt {

enum class Unary { kAbs, kErf, kExp, kGelu, kGeluTanh, kNeg, kRelu, kSigmoid, kSqrt, kTanh };
enum class Binary { kAdd, kSub, kMul, kDiv, kMin, kMax };

// A product's operands: out (rows, columns) = x (rows, k) * b (k, columns), each with the distance of its rows.
struct FloatProduct {
  const float* x;
  size_t x_stride, rows, k;
  const float* b;
  size_t b_stride;
  float* out;
  size_t out_stride, columns;
};

// What follows a product, element by element: activation(x + bias) * factor + residual. Operands without an address are
// left out. Rows of x, factor and residual are `stride` apart.
enum class Activation { kNone, kGelu, kGeluTanh, kRelu, kSwish };
struct FloatEnding {
  Activation activation;
  float beta;  // kSwish is x * sigmoid(beta * x)
  const float *bias, *factor, *residual;
  float* x;
  size_t stride, rows, columns;
};

struct VectorLoops {
  const char* name;
  size_t panel;  // columns of `multiply`
  // Steps are 0, for a single number, or 1.
  void (*unary)(Unary kind, const float* x, size_t count, float* out);
  void (*binary)(Binary kind, const float* a, size_t a_step, const float* b, size_t b_step, size_t count, float* out);
  void (*softmax)(const float* x, size_t count, float* out);
  // out = (x - mean) / sqrt(variance + epsilon) * weight + bias; without `centers`, the mean is 0. bias may be null.
  void (*normalize)(const float* x, size_t count, const float* weight, const float* bias, float epsilon, bool centers,
                    float* out);
  float (*sum)(const float* x, size_t count);
  // At most `panel` columns; b has `panel` of them.
  void (*multiply)(const FloatProduct& product);
  // Any number of columns, of which whole vectors are computed; returns how many. Fast for few rows.
  size_t (*multiply_few)(const FloatProduct& product);
  void (*finish)(const FloatEnding& ending);
};

// Returns the loops for this processor, at most those that BLIP2RT_KERNELS names.
const VectorLoops& vector_loops();

}  // namespace blip2rt
