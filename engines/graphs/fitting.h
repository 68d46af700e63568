// Refuses products whose weights do not fit their sizes. ONNX Runtime packs constant weights by a node's attributes
// alone, and releases up to 1.24 so read foreign memory. Knows MatMulNBits; nothing about files.
#pragma once

#include <string_view>

#include "graphs/onnx_walk.h"

namespace blip2rt {

// Throws std::runtime_error where a MatMulNBits of the model stands in a subgraph or a function, or has weights that
// are no constants of the size that N, K, bits and block_size ask for. `found`: what walk_model found in it.
void require_fitting_products(std::string_view model, const Found& found);

}  // namespace blip2rt
