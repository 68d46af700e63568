// Reads untrusted graph files and validates them before ONNX Runtime or TensorRT sees them: no data outside the bundle,
// no operators of our own domain, no bytes that two parsers could read differently.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace blip2rt {

// Reports a graph file that is damaged or breaks a rule. The message is a single line and names the file.
struct GraphError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The files next to a graph that it may read, and their sizes in bytes. Without a map: every regular file there.
using AllowedFiles = std::optional<std::map<std::string, uint64_t>>;

// The operators that a graph may have: those that exports for ONNX Runtime write, also those for TensorRT, or any, some
// of which can end the process.
enum class OperatorRules { kOnnxRuntime, kEveryEngine, kTrusted };

// Reads and validates a graph file. Throws GraphError.
//
// Every external tensor, anywhere in the model, must be in a regular file (no link) next to the graph, listed in
// `files` with its size, with offset and length inside the file. ONNX Runtime reads these files again afterwards:
// a user who can write to the folder could change them in between, but could also have changed the bundle before.
std::string read_graph(const std::string& path, const AllowedFiles& files, OperatorRules rules);

// Validates the bytes of a model. `folder` ends with '/', or is empty for the working directory. Throws
// std::runtime_error.
void check_model(std::string_view model, const std::string& folder, const AllowedFiles& files, OperatorRules rules);

// Returns the size of a tensor in a file in bytes; nothing for types without a fixed size, and on overflow.
std::optional<uint64_t> tensor_bytes(const std::vector<uint64_t>& shape, uint64_t dtype);

}  // namespace blip2rt
