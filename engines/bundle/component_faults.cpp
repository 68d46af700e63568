// Components that are missing, lack tensors or use files that the manifest does not list.
#include <algorithm>
#include <iterator>
#include <set>
#include <utility>

#include "base/utf8.h"
#include "bundle/manifest.h"

namespace blip2rt {
namespace {

using Names = std::vector<std::string>;

void check_group(Faults& faults, const Manifest& manifest, const Names& group, const char* key, bool is_given) {
  Names missing, have;
  for (const std::string& name : group) (manifest.has(name) ? have : missing).push_back(name);
  if (is_given && !missing.empty()) {
    faults.push_back(std::string(key) + " is given but the components " + joined(missing, ", ") + " are missing");
  }
  if (!is_given && !have.empty()) faults.push_back(joined(have, ", ") + " are given but " + key + " is null");
}

void check_groups(Faults& faults, const Manifest& manifest) {
  if (!manifest.has("vision")) faults.push_back("the component vision is missing");
  const bool encodes = manifest.llm && manifest.llm->encoder_decoder;
  Names generative = kGenerative;
  if (encodes) generative.push_back("encoder");
  check_group(faults, manifest, generative, "llm", manifest.llm.has_value());
  check_group(faults, manifest, kRetrieval, "retrieval", manifest.retrieval.has_value());
  if (encodes && !manifest.llm->decoder_start_token_id) {
    faults.push_back("llm.encoder_decoder is true but llm.decoder_start_token_id is null");
  }
  const Component* qformer = manifest.component("qformer");
  if (qformer != nullptr && !manifest.question && qformer->input("token_ids") != nullptr) {
    faults.push_back("qformer reads token_ids but question is null");
  }
}

// Appends prefix + key_0, prefix + value_0, prefix + key_1, ...
void append_layers(Names& names, const std::string& prefix, int64_t layers) {
  for (int64_t layer = 0; layer < layers; ++layer) {
    for (const char* part : {"key_", "value_"}) names.push_back(prefix + part + std::to_string(layer));
  }
}

// The inputs and outputs that the contract requires of a component.
TensorNames required_tensors(const Manifest& manifest, const std::string& name) {
  if ((name == "llm" || name == "encoder") && !manifest.llm) return {};
  ComponentKind kind;
  kind.target = manifest.target;
  if (manifest.llm) kind.layers = manifest.llm->layers;
  if (manifest.llm) kind.encoder_decoder = manifest.llm->encoder_decoder;
  TensorNames tensors = component_tensors(name, kind);
  if (manifest.question && name == "qformer") {
    tensors.inputs.insert(tensors.inputs.end(), {"token_ids", "text_mask"});
  }
  return tensors;
}

void check_tensors(Faults& faults, const std::string& name, const char* kind, const Names& required,
                   const std::vector<TensorSpec>& tensors) {
  std::set<std::string> given;
  for (const TensorSpec& tensor : tensors) given.insert(tensor.name);
  Names lacking;
  std::copy_if(required.begin(), required.end(), std::back_inserter(lacking),
               [&](const std::string& each) { return given.count(each) == 0; });
  if (lacking.empty()) return;
  const bool many = lacking.size() > 3;
  if (many) lacking.resize(3);
  faults.push_back(name + " lacks the " + kind + " " + joined(lacking, ", ") + (many ? "..." : ""));
}

bool leads_outside(const std::string& name) {
  if (name.empty() || name[0] == '/' || name.find_first_of(std::string("\\:\0", 3)) != std::string::npos) return true;
  bool has_part = false;
  for (size_t start = 0; start <= name.size();) {
    const size_t end = std::min(name.find('/', start), name.size());
    const std::string part = name.substr(start, end - start);
    if (part == "..") return true;
    has_part = has_part || (!part.empty() && part != ".");
    start = end + 1;
  }
  return !has_part;
}

void check_names(Faults& faults, const Manifest& manifest) {
  std::set<std::string> needed;
  for (const auto& [name, component] : manifest.components) needed.insert(component.graph);
  if (manifest.llm) needed.insert(manifest.llm->tokenizer);
  if (manifest.question) needed.insert(manifest.question->tokenizer);
  if (manifest.retrieval) {
    const RetrievalSpec& retrieval = *manifest.retrieval;
    needed.insert(retrieval.tokenizer);
    for (const std::optional<std::string>& file : {retrieval.mean_prefix, retrieval.pool}) {
      if (file) needed.insert(*file);
    }
  }
  for (const std::string& name : needed) {
    if (manifest.files.count(name) == 0) faults.push_back(shortened(name) + " is used but not in files");
  }
  for (const auto& [name, entry] : manifest.files) {
    if (leads_outside(name)) faults.push_back("the file name " + in_quotes(name) + " leads outside the bundle");
  }
}

TensorNames llm_tensors(const ComponentKind& kind) {
  const bool trt = kind.target == "trt";
  Names inputs = {"inputs_embeds", "position_ids", "last_index"}, outputs = {"logits"};
  if (!trt) inputs.insert(inputs.end(), {"seqlens_k", "total_sequence_length"});
  if (trt) inputs.push_back("past_mask");
  append_layers(inputs, "past_", kind.layers);
  append_layers(outputs, trt ? "new_" : "present_", kind.layers);
  if (kind.encoder_decoder) {
    append_layers(inputs, "cross_", kind.layers);
    inputs.push_back("encoder_mask");
  }
  return {inputs, outputs};
}

}  // namespace

TensorNames component_tensors(const std::string& name, const ComponentKind& kind) {
  if (name == "vision") return {{"pixels"}, {"vision_features"}};
  if (name == "qformer") return {{"vision_features"}, {"query_output", "prefix_embeds"}};
  if (name == "embed") return {{"token_ids"}, {"token_embeds"}};
  if (name == "image_embed") return {{"vision_features"}, {"image_embeds"}};
  if (name == "text_embed") return {{"token_ids", "text_mask"}, {"text_embeds"}};
  if (name == "itm") return {{"vision_features", "token_ids", "text_mask"}, {"itm_logits"}};
  if (name == "llm") return llm_tensors(kind);
  if (name != "encoder") return {};
  Names outputs;
  append_layers(outputs, "cross_", kind.layers);
  return {{"inputs_embeds", "attention_mask"}, outputs};
}

Faults component_faults(const Manifest& manifest) {
  Faults faults;
  check_groups(faults, manifest);
  const Component* llm = manifest.component("llm");
  if (manifest.target == "trt" && llm != nullptr && llm->output("present_key_0") != nullptr) {
    return {"it was exported with --target trt-native, which exists no more: export it again with --target trt"};
  }
  for (const auto& [name, component] : manifest.components) {
    const auto [inputs, outputs] = required_tensors(manifest, name);
    check_tensors(faults, name, "inputs", inputs, component.inputs);
    check_tensors(faults, name, "outputs", outputs, component.outputs);
  }
  check_names(faults, manifest);
  return faults;
}

}  // namespace blip2rt
