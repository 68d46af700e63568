// The operators that the executor runs, one function per kind: it reads and checks the attributes, and returns what
// computes the outputs.
#pragma once

#include "executor/graph.h"
#include "executor/node_run.h"
#include "graphs/onnx_graph.h"

namespace blip2rt {

struct OperatorKind {
  std::string_view domain, name;
  Compute (*make)(const Node& node);
};

// Elementwise, with broadcasting (elementwise.cpp).
std::vector<OperatorKind> elementwise_kinds();
// Shapes and copies (shapes.cpp).
std::vector<OperatorKind> shape_kinds();
// Tables and choices (tables.cpp).
std::vector<OperatorKind> table_kinds();
// Norms, softmax and reductions (norms.cpp).
std::vector<OperatorKind> norm_kinds();
// Attention of an image encoder (float_attention.cpp).
std::vector<OperatorKind> attention_kinds();
// Products (products.cpp).
std::vector<OperatorKind> product_kinds();

// qkv (.., 3 * num_heads * width) -> (images, positions, num_heads * width): EncoderAttention of ops/, in floats.
constexpr char kFloatAttention[] = "FloatAttention";

// Returns an axis counted from 0. Throws if a tensor of `rank` axes does not have it.
inline size_t axis_of(int64_t axis, size_t rank) {
  const auto count = static_cast<int64_t>(rank);
  require(axis >= -count && axis < count, "an axis is out of range");
  return static_cast<size_t>(axis < 0 ? axis + count : axis);
}

// Returns, for each axis, whether an operator names it. Throws for an axis that is out of range or named twice.
inline std::vector<bool> named_axes(const std::vector<int64_t>& axes, size_t rank) {
  std::vector<bool> named(rank);
  for (const int64_t each : axes) {
    const size_t axis = axis_of(each, rank);
    require(!named[axis], "an axis is named twice");
    named[axis] = true;
  }
  return named;
}

}  // namespace blip2rt
