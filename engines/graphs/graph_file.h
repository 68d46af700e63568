// Reads a graph's file and refuses what a stranger must not ask for, before ONNX Runtime or TensorRT sees it: data
// outside of the bundle, operators of our own domain, bytes that two readers could read in two ways. Knows files and
// tensors; not what operators mean.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace blip2rt {

// A graph's file that is damaged, or asks for what it may not. The message is one line and names the file.
struct GraphError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The files beside a graph that it may read, and their bytes. Nothing: every regular file beside it.
using AllowedFiles = std::optional<std::map<std::string, uint64_t>>;

// Reads a graph's file and checks it. Throws GraphError.
//
// Every tensor of the model, wherever it stands, that has its numbers in another file names a plain file beside the
// graph: a regular one, no link, listed in `files` with its size, and its offset and length lie inside. ONNX Runtime
// reads the files again after this check: who may write to the folder could change them in between, and could as well
// change the bundle before.
std::string read_graph(const std::string& path, const AllowedFiles& files);

// Checks the bytes of a model. `folder` ends with '/'; empty: where the process stands. Throws std::runtime_error.
void check_model(std::string_view model, const std::string& folder, const AllowedFiles& files);

// Bytes of a tensor in a file. Returns nothing for types that have no fixed size, and where there are too many.
std::optional<uint64_t> tensor_bytes(const std::vector<uint64_t>& shape, uint64_t dtype);

}  // namespace blip2rt
