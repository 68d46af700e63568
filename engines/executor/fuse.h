// Finds what follows a product element by element, to be computed in the product's end.
#pragma once

#include <vector>

#include "executor/graph.h"
#include "graphs/onnx_graph.h"

namespace blip2rt {

// Orders the steps of a graph so that such a chain follows its product, and adds a step to `fused` that does the work
// of both. `nodes`: of each step, in the order before.
void fuse_endings(PlannedGraph& graph, const std::vector<const Node*>& nodes);

}  // namespace blip2rt
