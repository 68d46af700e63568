// The inputs and outputs of an ONNX file, read without the rest of it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
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

// Returns a model with sizes in place of named axes of its inputs and outputs. Throws as read_graph_tensors does.
std::string with_axis_sizes(std::string_view model, const std::map<std::string, uint64_t>& sizes);

}  // namespace blip2rt
