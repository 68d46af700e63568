// Puts our operators into a graph in place of ONNX Runtime's. Knows which of them go together.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace blip2rt {

// Which operators of ONNX Runtime ours replace.
struct CustomOps {
  // MatMulNBits of 4 bits with constant weights, constant zero points, and scales cast from constant float16.
  bool int4 = true;
  // DynamicQuantizeMatMul without zero points, whose int8 weights are a Transpose of a constant (N, K). Ours is faster
  // with some hundred rows, slower with few. Where it replaces one, EncoderAttention replaces what a vision transformer
  // computes between its products.
  bool int8 = false;
  // GroupQueryAttention, all or none. Where it replaces them, CrossAttention replaces what reads cross_key_i and
  // cross_value_i. The graph then has the inputs cache_rows and encoder_rows.
  bool attention = true;
  size_t threads = 1;  // how many run the graph: products are divided among them
};

struct RewrittenGraph {
  std::string bytes;                 // empty where nothing is replaced
  std::vector<std::string> kernels;  // that run in place of ONNX Runtime's, such as "int4 avx512"
};

// Replaces what `ops` asks for in `model` (an ONNX ModelProto) where the processor has a kernel for it. Everything else
// stays. Throws std::runtime_error where the bytes are no model.
RewrittenGraph rewrite_model(const std::string& model, CustomOps ops);

// The kernels that this processor would run, such as "int4 avx512".
std::vector<std::string> processor_kernels();

}  // namespace blip2rt
