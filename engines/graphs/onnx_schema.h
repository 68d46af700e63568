// Walks an ONNX model from end to end by the fields of onnx.proto. What it accepts, protobuf reads in the same way: no
// later reader of the bytes can be led to another model. Knows fields and their types; not what they mean.
#pragma once

#include <string_view>
#include <vector>

namespace blip2rt {

// What a node computes.
struct Operator {
  std::string_view domain, type;
};

// What a model holds, anywhere: in its graph, in subgraphs, attributes and functions.
struct ModelContents {
  std::vector<std::string_view> tensors;  // every TensorProto
  std::vector<std::string_view> domains;  // of nodes, functions and imports
  std::vector<Operator> operators;        // of nodes
};

// Throws std::runtime_error where the bytes are no model, and where two readers could see two models in them: a known
// field of the wrong wire type, a single field that stands twice, text that is not UTF-8, a number that is too large.
ModelContents scan_model(std::string_view model);

}  // namespace blip2rt
