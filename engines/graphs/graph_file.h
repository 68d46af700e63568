// Reads untrusted graph files and the files of their weights, and validates them before ONNX Runtime or TensorRT sees
// them: no data outside the bundle, no operators of our own domain, no bytes that two parsers could read differently.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/system.h"

namespace blip2rt {

struct Constant;

// Reports a graph file that is damaged or breaks a rule. The message is a single line and names the file.
struct GraphError : std::runtime_error {
  explicit GraphError(const std::string& path, const std::string& reason,
                      const char* fix = "download the bundle again from a source you trust")
      : std::runtime_error(path + " is rejected: " + reason + ": " + fix) {}
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

// The weights that our operators read: in files next to the graph, which are mapped once, or in the graph itself. ONNX
// Runtime does not see them, so it neither opens, plans nor copies them. Must outlive the session.
class Weights {
 public:
  // `folder`: of the graph, with its separator. read_graph must have accepted the graph.
  explicit Weights(std::string folder) : folder_(std::move(folder)) {}

  // Returns where the values of a constant are, aligned for numbers; null if neither in a file nor raw in the graph.
  // Throws std::runtime_error if the file is too short or cannot be mapped.
  const void* address(const Constant& constant);

  // Takes the mapped weights out of the process's memory. They stay in the system's cache, and come back when read.
  void release() const;

 private:
  std::string folder_;
  std::map<std::string, MappedFile, std::less<>> files_;
  std::deque<std::string> copies_;  // which do not move
};

}  // namespace blip2rt
