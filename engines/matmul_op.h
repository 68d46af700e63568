// Our products as operators of ONNX Runtime. Knows tensors.
#pragma once

#include "ort_api.h"

namespace blip2rt {

constexpr char kOwnDomain[] = "blip2rt";
// x (.., K) float32, codes, scales float16, zero points -> (.., N): int4_matmul.h. Attributes N, K, block_size.
constexpr char kMatMulInt4[] = "MatMulInt4";
// x (.., K) float32, codes (K, N) int8, scales (N) float32[, bias (N) float32] -> (.., N): int8_matmul.h. N, K,
// bias: whether there is one.
constexpr char kMatMulInt8[] = "MatMulInt8";

// Makes them known to sessions with these options.
void add_own_products(OrtSessionOptions* options);

}  // namespace blip2rt
