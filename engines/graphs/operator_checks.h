// Rejects operators that exports do not use, and nodes for which ONNX Runtime would read out of bounds or abort. Up to
// 1.24 it packs constant weights by a node's attributes alone; up to 1.25 at least it accepts a short bias and indices
// without an axis; GatherND accepts any batch_dims.
#pragma once

#include <string_view>

#include "graphs/onnx_schema.h"

namespace blip2rt {

// Throws std::runtime_error for a non-standard operator that exports do not use; for a MatMulNBits or
// DynamicQuantizeMatMul whose weights do not fit; for a GatherND without exactly one batch axis; for invalid numbers of
// heads or parts; and if one of these is in a subgraph or function. `found` is the result of scan_model.
void check_operators(std::string_view model, const ModelContents& found);

}  // namespace blip2rt
