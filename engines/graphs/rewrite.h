// Replaces operators of ONNX Runtime in a graph by custom ones.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "graphs/graph_file.h"
#include "graphs/onnx_graph.h"

namespace blip2rt {

// The operators to replace.
struct CustomOps {
  // MatMulNBits with 4 bits, constant weights and zero points, and scales cast from constant float16.
  bool int4 = true;
  // DynamicQuantizeMatMul without zero points, whose int8 weights are a Transpose of a constant (N, K). Ours
  // quantizes each row by itself, so that a result does not depend on the batch. If any is replaced, EncoderAttention
  // replaces the attention of a vision transformer.
  bool int8 = true;
  // GroupQueryAttention, all or none. If replaced, CrossAttention replaces the attention to cross_key_i and
  // cross_value_i, and the graph gets the inputs cache_rows, encoder_rows and, for its only GatherND, logit_rows.
  // GatherRow replaces GatherND, and Add and SimplifiedLayerNormalization replace SkipSimplifiedLayerNormalization, in
  // any graph.
  bool attention = true;
  size_t threads = 1;  // threads of the session, among which products are divided
};

struct RewrittenGraph {
  std::string bytes;                 // empty if nothing is replaced
  std::vector<std::string> kernels;  // custom kernels, such as "int4 avx512"
};

// Replaces the operators that `ops` selects in `model` (an ONNX ModelProto), if the processor has a kernel for them.
// `weights` receives what the products read. Throws std::runtime_error if the bytes are no model, or weights cannot be
// mapped.
RewrittenGraph rewrite_model(const std::string& model, CustomOps ops, Weights& weights);

// Returns the kernels that this processor would run, such as "int4 avx512".
std::vector<std::string> processor_kernels();

// Returns the values of BLIP2RT_KERNELS that this processor supports, the best one first.
std::vector<std::string> kernel_levels();

// Returns an instruction set that NumPy and ONNX Runtime need and the processor lacks; empty if it has all.
std::string missing_instructions();

}  // namespace blip2rt
