// The operators that exports write, with the ranges of their attributes and of their constant lists. ONNX Runtime's
// other operators, and unusual forms of these, may end the process or run for ever.
#pragma once

#include "graphs/onnx_graph.h"

namespace blip2rt {

// Throws std::runtime_error unless exports may write a node with this operator, these attributes and inputs.
// for_tensorrt: TensorRT may be what runs it.
void check_allowed(const Graph& graph, const Node& node, bool for_tensorrt);

}  // namespace blip2rt
