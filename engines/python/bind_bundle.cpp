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
#include "python/python_types.h"

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

template <class T>
void read_field(nb::handle spec, const char* name, T& into) {
  into = nb::cast<T>(spec.attr(name));
}

std::optional<Logistic> logistic_of(nb::handle regression) {
  if (regression.is_none()) return std::nullopt;
  return Logistic{nb::cast<double>(regression.attr("bias")),
                  nb::cast<std::map<std::string, double>>(regression.attr("weights"))};
}

}  // namespace

std::optional<Calibration> calibration_of(nb::handle given) {
  if (given.is_none()) return std::nullopt;
  Calibration calibration;
  for (const auto& [name, into] :
       {std::pair("phrase", &calibration.phrase), std::pair("sentence", &calibration.sentence),
        std::pair("label", &calibration.label), std::pair("caption", &calibration.caption),
        std::pair("nearness", &calibration.nearness), std::pair("statement", &calibration.statement)}) {
    *into = logistic_of(given.attr(name));
  }
  read_field(given, "label_text", calibration.label_text);
  read_field(given, "mean_text", calibration.mean_text);
  read_field(given, "numbers", calibration.numbers);
  return calibration;
}

LlmSpec llm_spec_of(nb::handle given) {
  LlmSpec spec{};
  const auto read = [&](const char* name, auto& into) { read_field(given, name, into); };
  read("hidden_size", spec.hidden_size);
  read("vocab_size", spec.vocab_size);
  read("max_positions", spec.max_positions);
  read("prefix_length", spec.prefix_length);
  read("bos_token_id", spec.bos_token_id);
  read("prepend_bos", spec.prepend_bos);
  read("eos_token_ids", spec.eos_token_ids);
  read("add_special_tokens", spec.add_special_tokens);
  read("empty_prompt_ids", spec.empty_prompt_ids);
  read("encoder_decoder", spec.encoder_decoder);
  read("image_token_id", spec.image_token_id);
  read("clean_up_tokenization_spaces", spec.clean_up_tokenization_spaces);
  return spec;
}

QFormerTextSpec text_spec_of(nb::handle given) {
  QFormerTextSpec spec{};
  read_field(given, "tokenizer", spec.tokenizer);
  read_field(given, "max_text_length", spec.max_text_length);
  read_field(given, "pad_token_id", spec.pad_token_id);
  read_field(given, "clean_captions", spec.clean_captions);
  return spec;
}

Bundle bundle_of(nb::handle given) {
  const nb::object manifest = given.attr("manifest");
  const auto part = [&](const char* name) { return nb::object(manifest.attr(name)); };
  Bundle bundle{text_of(nb::bytes(nb::module_::import_("os").attr("fsencode")(given.attr("path")))), {}};
  Manifest& read = bundle.manifest;
  read_field(manifest, "name", read.name);
  for (const auto& [name, component] : nb::cast<std::map<std::string, nb::object>>(part("components"))) {
    read.components[name] = {};
  }
  if (!part("llm").is_none()) read.llm = llm_spec_of(part("llm"));
  if (!part("question").is_none()) read.question = QuestionSpec{text_spec_of(part("question")), ""};
  read.calibration = calibration_of(part("calibration"));
  const nb::object retrieval = part("retrieval");
  if (!retrieval.is_none()) {
    read.retrieval = RetrievalSpec{text_spec_of(retrieval), 0, 0, 0, {}, {}};
    read_field(retrieval, "temperature", read.retrieval->temperature);
    read_field(retrieval, "itm_weight", read.retrieval->itm_weight);
    read_field(retrieval, "likelihood_weight", read.retrieval->likelihood_weight);
    read_field(retrieval, "mean_prefix", read.retrieval->mean_prefix);
    read_field(retrieval, "pool", read.retrieval->pool);
  }
  return bundle;
}

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
