// The inputs and outputs of an ONNX file, read without the rest of it.
#pragma once

#include <string_view>
#include <vector>

#include "bundle/manifest.h"

namespace blip2rt {

struct GraphTensors {
  std::vector<TensorSpec> inputs, outputs;
};

// Throws std::runtime_error for bytes that are no model.
GraphTensors read_graph_tensors(std::string_view model);

// Appends what a graph has otherwise than its component: tensors that are missing, or of another type or size.
void append_differences(Faults& faults, const Component& component, const GraphTensors& graph);

}  // namespace blip2rt
