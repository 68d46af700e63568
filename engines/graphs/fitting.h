// Refuses nodes with which ONNX Runtime's own operators read foreign memory or end the process: up to 1.24 it packs
// constant weights by a node's attributes alone, up to 1.25 at least it adds a bias of any length and takes indices
// without an axis, and GatherND takes any batch_dims. Knows operators; nothing about files.
#pragma once

#include <string_view>

#include "graphs/onnx_walk.h"

namespace blip2rt {

// Throws std::runtime_error where a MatMulNBits has weights that are no constants of the size that N, K, bits and
// block_size ask for, a DynamicQuantizeMatMul has ones that do not fit one another, a GatherND has
// more than one axis of batches or indices that may have no axis, or one of them stands in a subgraph or a function.
// `found`: what walk_model found in the model.
void require_fitting_operators(std::string_view model, const Found& found);

}  // namespace blip2rt
