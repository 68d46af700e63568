// Graphs with our operators in place of ONNX Runtime's. Knows node types.
#pragma once

#include <string>
#include <vector>

namespace blip2rt {

struct OwnOps {
  bool int4 = true;  // MatMulNBits of 4 bits with constant weights, zero points and scales cast from constant float16
  // DynamicQuantizeMatMul with int8 weights that are a Transpose of a constant, each output's together, and no zero
  // points: faster with some hundred rows, slower with few. With it what a vision transformer computes between its
  // products, in bfloat16.
  bool int8 = false;
  // GroupQueryAttention, all of them or none, and with them what attends to an encoder's cross_key_i and cross_value_i:
  // the graph then has the inputs cache_rows and encoder_rows.
  bool attention = true;
  size_t threads = 1;  // that will run the graph: products are divided by them
};

struct OwnGraph {
  std::string bytes;                 // empty where nothing is replaced
  std::vector<std::string> kernels;  // what replaces, such as "int4 avx512"
};

// The graph in `bytes` (an ONNX ModelProto) with our operators in place of what is asked for and what the processor has
// a kernel for. Nothing else changes.
OwnGraph with_own_ops(const std::string& bytes, OwnOps ops);

// The kernels that this processor would run, such as "int4 avx512".
std::vector<std::string> processor_kernels();

}  // namespace blip2rt
