// Reading of bundles and of their graphs' files, as functions of paths and bytes.
#include <nanobind/stl/pair.h>

#include <optional>
#include <string>
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
      [](const std::string& component, int64_t layers, bool encoder_decoder, const std::string& target) {
        TensorNames names = component_tensors(component, {layers, encoder_decoder, target});
        return std::pair(std::move(names.inputs), std::move(names.outputs));
      },
      "component"_a, "layers"_a = 0, "encoder_decoder"_a = false, "target"_a = "ort",
      "Return the names of a graph's inputs and outputs, each layer's key before its value.");
  m.def("verify_bundle", &verify_files, "folder"_a, "progress"_a,
        "Compare the sha256 of every file. Raises BundleError with every altered file. progress: called with the bytes "
        "of each piece of a file.");
  m.def("manifest_faults", &faults_of, "manifest"_a, "Return everything that is wrong with the bytes of a manifest.");
}

}  // namespace blip2rt
