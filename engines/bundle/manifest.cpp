// JSON -> Manifest.
#include "bundle/manifest.h"

#include <algorithm>
#include <utility>

#include "base/utf8.h"
#include "bundle/json_fields.h"

namespace blip2rt {

static void read_fields(Fields& fields, TensorSpec& into) {
  fields.required("name", into.name, "dtype", into.dtype, "shape", into.shape);
}

static void read_fields(Fields& fields, Component& into) {
  fields.required("graph", into.graph, "precision", into.precision, "inputs", into.inputs, "outputs", into.outputs);
}

static void read_fields(Fields& fields, ImageSpec& into) {
  fields.required("height", into.height, "width", into.width, "resample", into.resample, "mean", into.mean, "std",
                  into.std);
}

static void read_fields(Fields& fields, LlmSpec& into) {
  fields.required("layers", into.layers, "kv_heads", into.kv_heads, "head_dim", into.head_dim, "hidden_size",
                  into.hidden_size, "vocab_size", into.vocab_size, "max_positions", into.max_positions, "prefix_length",
                  into.prefix_length, "bos_token_id", into.bos_token_id, "prepend_bos", into.prepend_bos,
                  "eos_token_ids", into.eos_token_ids, "pad_token_id", into.pad_token_id, "tokenizer", into.tokenizer);
  fields.optional("add_special_tokens", into.add_special_tokens, "empty_prompt_ids", into.empty_prompt_ids,
                  "encoder_decoder", into.encoder_decoder, "decoder_start_token_id", into.decoder_start_token_id,
                  "image_token_id", into.image_token_id, "clean_up_tokenization_spaces",
                  into.clean_up_tokenization_spaces);
}

static void read_text_fields(Fields& fields, QFormerTextSpec& into) {
  fields.required("tokenizer", into.tokenizer, "max_text_length", into.max_text_length, "pad_token_id",
                  into.pad_token_id);
  fields.optional("clean_captions", into.clean_captions);
}

static void read_fields(Fields& fields, RetrievalSpec& into) {
  read_text_fields(fields, into);
  fields.optional("temperature", into.temperature, "itm_weight", into.itm_weight, "likelihood_weight",
                  into.likelihood_weight, "mean_prefix", into.mean_prefix, "pool", into.pool);
}

static void read_fields(Fields& fields, QuestionSpec& into) {
  read_text_fields(fields, into);
  fields.optional("prompt", into.prompt);
}

static void read_fields(Fields& fields, Decoding& into) {
  fields.optional("num_beams", into.num_beams, "max_new_tokens", into.max_new_tokens, "min_new_tokens",
                  into.min_new_tokens, "length_penalty", into.length_penalty, "no_repeat_words", into.no_repeat_words);
}

static void read_fields(Fields& fields, Logistic& into) { fields.required("bias", into.bias, "weights", into.weights); }

static void read_fields(Fields& fields, Calibration& into) {
  fields.optional("phrase", into.phrase, "sentence", into.sentence, "statement", into.statement, "label", into.label,
                  "caption", into.caption, "nearness", into.nearness, "label_text", into.label_text, "mean_text",
                  into.mean_text, "numbers", into.numbers);
}

static void read_fields(Fields& fields, Source& into) {
  fields.required("part", into.part, "name", into.name, "licence", into.licence, "origin", into.origin);
}

static void read_fields(Fields& fields, Verification& into) {
  fields.required("component", into.component, "precision", into.precision, "max_abs_error", into.max_abs_error);
  fields.optional("cosine", into.cosine, "agreement", into.agreement);
}

static void read_fields(Fields& fields, FileEntry& into) { fields.required("size", into.size, "sha256", into.sha256); }

static void read_fields(Fields& fields, Manifest& into) {
  fields.required("name", into.name, "created_by", into.created_by, "components", into.components, "image", into.image,
                  "llm", into.llm, "retrieval", into.retrieval, "prompts", into.prompts, "decoding", into.decoding);
  fields.optional("question", into.question, "sources", into.sources, "verification", into.verification);
  std::optional<std::map<std::string, FileEntry>> files;  // null in a manifest that no writer has finished
  fields.optional("files", files);
  if (files) into.files = std::move(*files);
  fields.optional("calibration", into.calibration, "target", into.target);
}

namespace {

constexpr const char* kFormat = "blip2rt-bundle";
constexpr int64_t kFormatVersion = 1;

Error model_error(std::string fault) { return {ErrorKind::kModel, std::move(fault)}; }

void check_format(Json root, const std::string& file) {
  if (root["format"].kind() != Json::kString || root["format"].text() != kFormat) {
    throw model_error(file + " is not the manifest of a blip2rt bundle (no \"format\": \"" + kFormat + "\")");
  }
  const Json version = root["format_version"];
  const bool whole = version.kind() == Json::kNumber && version.digits().find_first_of(".eE") == std::string::npos;
  if (!whole || version.number() < 1) {
    throw model_error(file + ": format_version is " + shown(version) + ", not a whole number from 1 up");
  }
  if (version.number() > kFormatVersion) {
    throw model_error(file + " has bundle format version " + shown(version) + ", this blip2rt reads versions up to " +
                      std::to_string(kFormatVersion) +
                      ": install a newer blip2rt, or export the bundle again with this one");
  }
}

Manifest build(Json root, Faults& faults) {
  Manifest manifest{};
  try {
    Fields fields(root, "", faults);
    read_fields(fields, manifest);
  } catch (const TooManyFaults&) {  // `faults` has them
  }
  if (faults.empty()) faults = value_faults(manifest);
  if (faults.empty()) {
    faults = component_faults(manifest);
    for (std::string& fault : size_faults(manifest)) faults.push_back(std::move(fault));
  }
  if (faults.size() > kMaxFaults) faults.resize(kMaxFaults);
  return manifest;
}

const TensorSpec* find_tensor(const std::vector<TensorSpec>& tensors, const std::string& name) {
  const auto found = std::find_if(tensors.begin(), tensors.end(), [&](const auto& each) { return each.name == name; });
  return found == tensors.end() ? nullptr : &*found;
}

}  // namespace

std::string shown_shape(const TensorSpec& tensor) {
  Faults axes;
  for (const Axis& axis : tensor.shape) {
    const int64_t* size = std::get_if<int64_t>(&axis);
    axes.push_back(size == nullptr ? in_quotes(std::get<std::string>(axis)) : std::to_string(*size));
  }
  return "[" + joined(axes, ", ") + "]";
}

const TensorSpec* Component::input(const std::string& name) const { return find_tensor(inputs, name); }

const TensorSpec* Component::output(const std::string& name) const { return find_tensor(outputs, name); }

std::vector<std::pair<std::string, const Logistic*>> Calibration::regressions() const {
  std::vector<std::pair<std::string, const Logistic*>> given;
  for (auto [name, regression] :
       {std::pair("phrase", &phrase), std::pair("sentence", &sentence), std::pair("statement", &statement),
        std::pair("label", &label), std::pair("caption", &caption), std::pair("nearness", &nearness)}) {
    if (*regression) given.emplace_back(std::string("calibration.") + name, &**regression);
  }
  return given;
}

const Component* Manifest::component(const std::string& name) const {
  const auto found = components.find(name);
  return found == components.end() ? nullptr : &found->second;
}

Manifest read_manifest(std::string bytes, const std::string& file) {
  Faults faults;
  try {
    const JsonDocument document(bytes);
    check_format(document.root(), file);
    Manifest manifest = build(document.root(), faults);
    if (faults.empty()) return manifest;
  } catch (const Error&) {
    throw;
  } catch (const std::runtime_error& error) {
    faults = {error.what()};
  }
  faults.front() = file + " is damaged: " + faults.front();
  throw Error(ErrorKind::kModel, std::move(faults));
}

}  // namespace blip2rt
