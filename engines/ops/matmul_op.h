// The custom operators MatMulInt4 and MatMulInt8, which run kernels/int4 and kernels/int8.
#pragma once

#include <vector>

#include "ops/custom_op.h"

namespace blip2rt {

// x (.., K) float32, codes (N, blocks, block_size / 2) uint8, scales (N, blocks) float16, zero points uint8 -> (.., N)
// float32, see kernels/int4/matmul.h. Attributes: N, K, block_size, split (1: 16-bit activations, 0: 8-bit), threads
// (of the session).
constexpr char kMatMulInt4[] = "MatMulInt4";

// x (.., K) float32, codes (N, K) int8, scales (N) float32[, bias (N) float32] -> (.., N) float32, see
// kernels/int8/matmul.h. Attributes: N, K, bias (1: there is one), threads (of the session).
constexpr char kMatMulInt8[] = "MatMulInt8";

std::vector<OperatorType> matmul_types();

}  // namespace blip2rt
