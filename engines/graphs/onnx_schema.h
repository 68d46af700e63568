// Validates every message of an ONNX model against onnx.proto. Protobuf parses accepted bytes in the same way, so no
// other parser can be made to see a different model.
#pragma once

#include <string_view>
#include <vector>

namespace blip2rt {

// The tensors and domains anywhere in a model: in its graph, subgraphs, attributes and functions.
struct ModelContents {
  std::vector<std::string_view> tensors;  // every TensorProto
  std::vector<std::string_view> domains;  // of nodes, functions and imports
};

// Scans a model. Throws std::runtime_error if the bytes are no model, or ambiguous: a field with the wrong wire type, a
// repeated singular field, invalid UTF-8, an out-of-range number.
ModelContents scan_model(std::string_view model);

}  // namespace blip2rt
