// Reading of bundles and of their graphs' files, as functions of paths and bytes.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bundle/bundle.h"
#include "bundle/graph_tensors.h"
#include "language/tokenizers.h"
#include "python/bind.h"
#include "python/casters.h"
#include "python/python_loop.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace blip2rt {
namespace {

std::string text_of(const nb::bytes& bytes) { return {bytes.c_str(), bytes.size()}; }

nb::bytes bytes_of(const std::string& text) { return nb::bytes(text.data(), text.size()); }

nb::bytes read(const nb::bytes& path, bool files, bool tensors) {
  const std::string folder = text_of(path);
  std::string manifest;
  {
    const ReleasedGil released;
    manifest = manifest_bytes(folder);
    const Bundle bundle = parse_bundle(folder, manifest);
    if (files) check_files(bundle);
    if (tensors) check_tensors(bundle);
  }
  return bytes_of(manifest);
}

void verify_files(const nb::bytes& path, const nb::callable& progress) {
  const std::string folder = text_of(path);
  const ReleasedGil released;
  verify(parse_bundle(folder, manifest_bytes(folder)), [&progress](uint64_t bytes) {
    const HeldGil held;
    progress(bytes);
  });
}

void check_parts(const nb::bytes& path, bool trusted) {
  const std::string folder = text_of(path);
  const ReleasedGil released;
  const Bundle bundle = parse_bundle(folder, manifest_bytes(folder));
  check_graphs(bundle, trusted);
  check_tokenizers(bundle);
}

nb::dict readable(const std::string& graph, const std::map<std::string, int64_t>& sizes) {
  std::map<std::string, FileEntry> files;
  for (const auto& [name, size] : sizes) files[name].size = size;
  nb::dict found;
  for (const auto& [name, size] : readable_files(graph, files)) found[name.c_str()] = size;
  return found;
}

Faults faults_of(const nb::bytes& manifest) {
  try {
    parse_bundle("", text_of(manifest));
  } catch (const Error& error) {
    return error.faults;
  }
  return {};
}

using TensorTuple = std::tuple<std::string, std::string, std::vector<Axis>>;

std::vector<TensorTuple> tuples_of(const std::vector<TensorSpec>& tensors) {
  std::vector<TensorTuple> tuples;
  for (const TensorSpec& tensor : tensors) tuples.emplace_back(tensor.name, tensor.dtype, tensor.shape);
  return tuples;
}

}  // namespace

void bind_bundle(nb::module_& m) {
  m.def("read_bundle", &read, "folder"_a, "files"_a = true, "tensors"_a = false,
        "Read and check a bundle. Return its manifest, JSON without faults. Raises BundleError with every fault. "
        "folder: a path as os.fsencode returns it. files: check the files' sizes. tensors: compare the inputs and "
        "outputs of every graph with the manifest.");
  m.def("check_parts", &check_parts, "folder"_a, "trusted"_a);
  m.def("readable_files", &readable, "graph"_a, "sizes"_a,
        "Files of a bundle -> those that a graph may read, by their names in its folder, with their sizes.");
  m.def(
      "component_tensors",
      [](const std::string& component, int64_t layers, bool encoder_decoder, const std::string& target, bool in_place) {
        TensorNames names = component_tensors(component, {layers, encoder_decoder, in_place, target});
        return std::pair(std::move(names.inputs), std::move(names.outputs));
      },
      "component"_a, "layers"_a = 0, "encoder_decoder"_a = false, "target"_a = "ort", "in_place"_a = false,
      "Return the names of a graph's inputs and outputs, each layer's key before its value. in_place: whether an llm "
      "graph of the target trt writes the cache itself.");
  m.def("verify_bundle", &verify_files, "folder"_a, "progress"_a,
        "Compare the sha256 of every file. Raises BundleError with every altered file. progress: called with the bytes "
        "of each piece of a file.");
  m.def("manifest_faults", &faults_of, "manifest"_a, "Return everything that is wrong with the bytes of a manifest.");
  m.def(
      "graph_tensors",
      [](const nb::bytes& model) {
        const GraphTensors found = read_graph_tensors({model.c_str(), model.size()});
        return std::pair(tuples_of(found.inputs), tuples_of(found.outputs));
      },
      "model"_a, "Return the inputs and outputs of a model's bytes. Raises RuntimeError if they are no model.");
  m.def(
      "with_axis_sizes",
      [](const nb::bytes& model, const std::map<std::string, uint64_t>& sizes) {
        return bytes_of(with_axis_sizes({model.c_str(), model.size()}, sizes));
      },
      "model"_a, "sizes"_a,
      "Replace named axes of a model's inputs and outputs by sizes. Raises RuntimeError if the bytes are no model.");
}

}  // namespace blip2rt
