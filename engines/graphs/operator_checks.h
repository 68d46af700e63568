// Refuses operators that no export has, and nodes with which ONNX Runtime's own read foreign memory or end the process.
// Up to 1.24 it packs constant weights by a node's attributes alone. Up to 1.25 at least a bias may be too short and
// indices may lack an axis. GatherND takes any batch_dims. Knows operators; nothing about files.
#pragma once

#include <string_view>

#include "graphs/onnx_schema.h"

namespace blip2rt {

// Throws std::runtime_error where an operator is neither ONNX's own nor one of ONNX Runtime's that exports have; where
// a MatMulNBits has weights that are no constants of the size that N, K, bits and block_size ask for, a
// DynamicQuantizeMatMul ones that do not fit one another, or a GatherND several axes of batches or indices that may
// have no axis; and where one of these three stands in a subgraph or a function. `found`: what scan_model found in the
// model.
void require_fitting_operators(std::string_view model, const ModelContents& found);

}  // namespace blip2rt
