// Faults of a manifest beyond its types: values, components, file names.
#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "base/unicode.h"
#include "base/utf8.h"
#include "model/manifest.h"

namespace blip2rt {
namespace {

using Names = std::vector<std::string>;

// Upper bounds: far above every existing model, far below what would fill a machine's memory.
constexpr int64_t kMaxImageSide = 16'384, kMaxTokens = 10'000'000, kMaxTextLength = 100'000, kMaxBeams = 1'000;
constexpr size_t kMaxCharacters = 100'000;

const Names kGenerative = {"qformer", "embed", "llm"}, kRetrieval = {"image_embed", "text_embed", "itm"};
const Names kResample = {"nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"};

bool holds(const Names& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

void check_range(Faults& faults, const std::string& name, int64_t value, int64_t limit) {
  if (value > 0 && value <= limit) return;
  faults.push_back(name + " is " + std::to_string(value) + ", not from 1 to " +
                   with_commas(static_cast<uint64_t>(limit)));
}

void check_token(Faults& faults, const std::string& name, std::optional<int64_t> token) {
  if (!token || (*token >= 0 && *token <= kMaxTokens)) return;
  faults.push_back(name + " is " + std::to_string(*token) + ", not a token id");
}

void check_image(Faults& faults, const Manifest& manifest) {
  const ImageSpec& image = manifest.image;
  const auto is_mean = [](double x) { return std::fabs(x) <= 100; };
  const auto is_std = [](double x) { return x >= 1e-4 && x <= 100; };
  if (image.mean.size() != 3 || image.std.size() != 3 || !std::all_of(image.mean.begin(), image.mean.end(), is_mean) ||
      !std::all_of(image.std.begin(), image.std.end(), is_std)) {
    faults.push_back("image.mean needs three numbers from -100 to 100, image.std three from 0.0001 to 100");
  }
  if (!holds(kResample, image.resample)) {
    faults.push_back("image.resample is " + quoted(image.resample) + ": choose from " + joined(kResample, ", "));
  }
  check_range(faults, "image.height", image.height, kMaxImageSide);
  check_range(faults, "image.width", image.width, kMaxImageSide);
  const auto vision = manifest.components.find("vision");
  if (vision == manifest.components.end()) return;
  for (const TensorSpec& tensor : vision->second.inputs) {
    if (tensor.name != "pixels" || tensor.shape.size() != 4) continue;
    const int64_t expected[] = {3, image.height, image.width};
    bool fits = true;
    for (size_t i = 0; i < 3; ++i) fits = fits && (tensor.shape[i + 1] < 0 || tensor.shape[i + 1] == expected[i]);
    if (fits) continue;
    faults.push_back("image is " + std::to_string(image.height) + " x " + std::to_string(image.width) +
                     ", but vision reads pixels of " + std::to_string(tensor.shape[2]) + " x " +
                     std::to_string(tensor.shape[3]));
  }
}

void check_llm(Faults& faults, const LlmSpec& llm) {
  check_range(faults, "llm.layers", llm.layers, 1'000);
  check_range(faults, "llm.kv_heads", llm.kv_heads, 10'000);
  check_range(faults, "llm.head_dim", llm.head_dim, 10'000);
  check_range(faults, "llm.hidden_size", llm.hidden_size, 1'000'000);
  check_range(faults, "llm.vocab_size", llm.vocab_size, kMaxTokens);
  check_range(faults, "llm.max_positions", llm.max_positions, kMaxTokens);
  check_range(faults, "llm.prefix_length", llm.prefix_length, 100'000);
  check_token(faults, "llm.bos_token_id", llm.bos_token_id);
  check_token(faults, "llm.pad_token_id", llm.pad_token_id);
  check_token(faults, "llm.decoder_start_token_id", llm.decoder_start_token_id);
  for (const int64_t token : llm.eos_token_ids) check_token(faults, "llm.eos_token_ids", token);
  if (!llm.empty_prompt_ids) return;
  for (const int64_t token : *llm.empty_prompt_ids) check_token(faults, "llm.empty_prompt_ids", token);
}

void check_text(Faults& faults, const char* section, const QFormerTextSpec& spec) {
  check_range(faults, std::string(section) + ".max_text_length", spec.max_text_length, kMaxTextLength);
  check_token(faults, std::string(section) + ".pad_token_id", spec.pad_token_id);
}

void check_retrieval(Faults& faults, const Manifest& manifest) {
  const RetrievalSpec& spec = *manifest.retrieval;
  check_text(faults, "retrieval", spec);
  for (auto [name, value, low, shown] : {std::tuple("temperature", spec.temperature, 1e-4, "0.0001"),
                                         std::tuple("itm_weight", spec.itm_weight, 0.0, "0"),
                                         std::tuple("likelihood_weight", spec.likelihood_weight, 0.0, "0")}) {
    if (value >= low && value <= 1e4) continue;
    faults.push_back(std::string("retrieval.") + name + " is " + std::to_string(value) + ", not from " + shown +
                     " to 10,000");
  }
  if (spec.likelihood_weight != 0 && (!manifest.llm || !spec.mean_prefix)) {
    faults.push_back("retrieval.likelihood_weight is given without a language model or retrieval.mean_prefix");
  }
  if (spec.pool && (!manifest.llm || manifest.llm->eos_token_ids.empty())) {
    faults.push_back("retrieval.pool is given without a language model or llm.eos_token_ids");
  }
}

void check_length(Faults& faults, const std::string& name, const std::string& text) {
  const size_t size = count_characters(text);
  if (size <= kMaxCharacters) return;
  faults.push_back(name + " has " + with_commas(size) + " characters, more than " + with_commas(kMaxCharacters));
}

Faults value_faults(const Manifest& manifest) {
  Faults faults;
  check_image(faults, manifest);
  if (manifest.llm) check_llm(faults, *manifest.llm);
  if (manifest.retrieval) check_retrieval(faults, manifest);
  if (manifest.question) check_text(faults, "question", *manifest.question);
  for (const auto& [task, defaults] : manifest.decoding) {
    check_range(faults, "decoding." + task + ".num_beams", defaults.num_beams, kMaxBeams);
    check_range(faults, "decoding." + task + ".max_new_tokens", defaults.max_new_tokens, kMaxTokens);
    if (defaults.min_new_tokens < 0 || defaults.min_new_tokens > kMaxTokens ||
        !(std::fabs(defaults.length_penalty) <= 100)) {
      faults.push_back("decoding." + task + ": min_new_tokens is 0 or more, length_penalty from -100 to 100");
    }
  }
  check_length(faults, "name", manifest.name);
  check_length(faults, "created_by", manifest.created_by);
  for (const auto& [task, prompt] : manifest.prompts) check_length(faults, "prompts." + task, prompt);
  return faults;
}

// Appends prefix + key_0, prefix + value_0, prefix + key_1, ...
void append_layers(Names& names, const std::string& prefix, int64_t layers) {
  for (int64_t layer = 0; layer < layers; ++layer) {
    for (const char* part : {"key_", "value_"}) names.push_back(prefix + part + std::to_string(layer));
  }
}

// The inputs and outputs that the contract requires of a component for ONNX Runtime.
std::pair<Names, Names> required_tensors(const Manifest& manifest, const std::string& name) {
  if (name == "vision") return {{"pixels"}, {"vision_features"}};
  if (name == "embed") return {{"token_ids"}, {"token_embeds"}};
  if (name == "image_embed") return {{"vision_features"}, {"image_embeds"}};
  if (name == "text_embed") return {{"token_ids", "text_mask"}, {"text_embeds"}};
  if (name == "itm") return {{"vision_features", "token_ids", "text_mask"}, {"itm_logits"}};
  if (name == "qformer" || name == "attention") {
    Names inputs = {"vision_features"};
    if (manifest.question) inputs.insert(inputs.end(), {"token_ids", "text_mask"});
    return {inputs, name == "qformer" ? Names{"query_output", "prefix_embeds"} : Names{"attention_maps"}};
  }
  if (!manifest.llm) return {};
  const int64_t layers = manifest.llm->layers;
  if (name == "encoder") {
    Names outputs;
    append_layers(outputs, "cross_", layers);
    return {{"inputs_embeds", "attention_mask"}, outputs};
  }
  if (name != "llm") return {};
  Names inputs = {"inputs_embeds", "position_ids", "last_index", "seqlens_k", "total_sequence_length"};
  Names outputs = {"logits"};
  append_layers(inputs, "past_", layers);
  append_layers(outputs, "present_", layers);
  if (manifest.llm->encoder_decoder) {
    append_layers(inputs, "cross_", layers);
    inputs.push_back("encoder_mask");
  }
  return {inputs, outputs};
}

template <class Has>
void check_tensors(Faults& faults, const std::string& name, const char* kind, const Names& required, Has has) {
  Names lacking;
  std::copy_if(required.begin(), required.end(), std::back_inserter(lacking),
               [&](const auto& each) { return !has(each); });
  if (lacking.empty()) return;
  const bool many = lacking.size() > 3;
  if (many) lacking.resize(3);
  faults.push_back(name + " lacks the " + kind + " " + joined(lacking, ", ") + (many ? "..." : ""));
}

void check_group(Faults& faults, const Manifest& manifest, const Names& group, const char* key, bool is_given) {
  Names missing, have;
  for (const std::string& name : group) (manifest.has(name) ? have : missing).push_back(name);
  if (is_given && !missing.empty()) {
    faults.push_back(std::string(key) + " is given but the components " + joined(missing, ", ") + " are missing");
  }
  if (!is_given && !have.empty()) faults.push_back(joined(have, ", ") + " are given but " + key + " is null");
}

Faults component_faults(const Manifest& manifest) {
  Faults faults;
  if (!manifest.has("vision")) faults.push_back("the component vision is missing");
  const bool encodes = manifest.llm && manifest.llm->encoder_decoder;
  Names generative = kGenerative;
  if (encodes) generative.push_back("encoder");
  check_group(faults, manifest, generative, "llm", manifest.llm.has_value());
  check_group(faults, manifest, kRetrieval, "retrieval", manifest.retrieval.has_value());
  if (encodes && !manifest.llm->decoder_start_token_id) {
    faults.push_back("llm.encoder_decoder is true but llm.decoder_start_token_id is null");
  }
  if (manifest.has("qformer") && !manifest.question && manifest.components.at("qformer").reads("token_ids")) {
    faults.push_back("qformer reads token_ids but question is null");
  }
  for (const auto& entry : manifest.components) {
    const Component& component = entry.second;
    const auto [inputs, outputs] = required_tensors(manifest, entry.first);
    check_tensors(faults, entry.first, "inputs", inputs,
                  [&](const std::string& each) { return component.reads(each); });
    check_tensors(faults, entry.first, "outputs", outputs,
                  [&](const std::string& each) { return component.writes(each); });
  }
  return faults;
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

Faults name_faults(const Manifest& manifest) {
  Faults faults;
  std::set<std::string> needed;
  for (const auto& [name, component] : manifest.components) needed.insert(component.graph);
  if (manifest.llm) needed.insert(manifest.llm->tokenizer);
  if (manifest.retrieval) needed.insert(manifest.retrieval->tokenizer);
  if (manifest.question) needed.insert(manifest.question->tokenizer);
  const std::optional<std::string> prefix = manifest.retrieval ? manifest.retrieval->mean_prefix : std::nullopt;
  if (prefix) needed.insert(*prefix);
  if (manifest.retrieval && manifest.retrieval->pool) needed.insert(*manifest.retrieval->pool);
  for (const std::string& name : needed) {
    if (manifest.files.count(name) == 0) faults.push_back(single_line(name) + " is used but not in files");
  }
  const auto file = prefix ? manifest.files.find(*prefix) : manifest.files.end();
  if (manifest.llm && file != manifest.files.end() &&
      file->second.size != 4 * manifest.llm->prefix_length * manifest.llm->hidden_size) {
    faults.push_back(single_line(*prefix) + " is not of " + std::to_string(manifest.llm->prefix_length) + " x " +
                     std::to_string(manifest.llm->hidden_size) + " float32");
  }
  for (const auto& [name, entry] : manifest.files) {
    if (leads_outside(name)) faults.push_back("the file name " + quoted(name) + " leads outside the bundle");
  }
  return faults;
}

}  // namespace

Faults manifest_faults(const Manifest& manifest) {
  Faults faults = value_faults(manifest);
  if (!faults.empty()) return faults;
  faults = component_faults(manifest);
  for (std::string& fault : name_faults(manifest)) faults.push_back(std::move(fault));
  return faults;
}

}  // namespace blip2rt
