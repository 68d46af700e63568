// The product of int4_matmul.h as an operator of ONNX Runtime, and the graphs that use it. Knows tensors and node
// types.
#pragma once

#include <string>

#include "ort_api.h"

namespace blip2rt {

// The graph in `bytes` (an ONNX ModelProto) with our operator in place of every com.microsoft::MatMulNBits that it can
// do: 4 bits, constant weights with zero points, scales cast from constant float16. Nothing else changes, and what can
// be read both ways computes the same. Empty where there is nothing to replace or the processor has no kernel.
std::string with_own_matmul(const std::string& bytes);

// Makes the operator known to sessions with these options.
void add_own_matmul(OrtSessionOptions* options);

}  // namespace blip2rt
