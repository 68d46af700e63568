// JSON -> Manifest, with the faults of types. manifest_faults.cpp checks values.
#include "model/manifest.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/json.h"
#include "base/utf8.h"

namespace blip2rt {
namespace {

constexpr size_t kMaxEntries = 10'000, kMaxFaults = 20;
constexpr double kExact = 9007199254740992.0;  // 2^53: doubles are exact whole numbers up to it

std::string shown(Json value) {
  switch (value.kind()) {
    case Json::kNull: return "None";
    case Json::kFalse: return "False";
    case Json::kTrue: return "True";
    case Json::kNumber: {
      const double number = value.number();
      return std::fabs(number) < kExact && number == std::floor(number) ? std::to_string(static_cast<int64_t>(number))
                                                                        : std::to_string(number);
    }
    case Json::kString: return quoted(value.text());
    case Json::kArray: return "a list";
    case Json::kObject: return "an object";
  }
  return "";
}

// Reads the fields of an object. Collects faults with their place, and throws once there are too many to print.
class Fields {
 public:
  Fields(Json json, std::string where, Faults& faults) : json_(json), where_(std::move(where)), faults_(faults) {
    if (json.kind() != Json::kObject) wrong(where_.empty() ? "the manifest" : where_, json, "an object");
  }

  // A field that must be there, or one with a default.
  template <class T>
  void required(const char* name, T& into) {
    if (json_.kind() != Json::kObject) return;
    if (!is_given(name)) {
      add(place(name) + " is missing");
    } else {
      convert(json_[name], place(name), into);
    }
  }
  template <class T>
  void optional(const char* name, T& into) {
    if (is_given(name)) convert(json_[name], place(name), into);
  }

 private:
  std::string place(const std::string& name) const { return where_.empty() ? name : where_ + "." + name; }

  bool is_given(std::string_view name) const {
    if (json_.kind() != Json::kObject) return false;
    bool is_key = false;  // keys and values take turns
    for (const Json each : json_) {
      if ((is_key = !is_key) && each.text() == name) return true;
    }
    return false;
  }

  void add(std::string fault) {
    faults_.push_back(std::move(fault));
    if (faults_.size() == kMaxFaults) throw Error(ErrorKind::kModel, faults_);
  }
  void wrong(const std::string& where, Json value, const char* what) {
    add(where + " is " + shown(value) + ", not " + what);
  }

  void convert(Json json, const std::string& where, std::string& into) {
    if (json.kind() != Json::kString) return wrong(where, json, "str");
    into = json.text();
  }
  void convert(Json json, const std::string& where, bool& into) {
    if (json.kind() != Json::kTrue && json.kind() != Json::kFalse) return wrong(where, json, "bool");
    into = json.kind() == Json::kTrue;
  }
  void convert(Json json, const std::string& where, double& into) {
    if (json.kind() != Json::kNumber) return wrong(where, json, "float");
    into = json.number();
  }
  void convert(Json json, const std::string& where, int64_t& into) {
    const double number = json.kind() == Json::kNumber ? json.number() : 0.5;
    if (!(std::fabs(number) < kExact && number == std::floor(number))) return wrong(where, json, "int");
    into = static_cast<int64_t>(number);
  }
  template <class T>
  void convert(Json json, const std::string& where, std::optional<T>& into) {
    if (json.kind() == Json::kNull) return into.reset();
    convert(json, where, into.emplace());
  }
  template <class T>
  void convert(Json json, const std::string& where, std::vector<T>& into) {
    if (json.kind() != Json::kArray) return wrong(where, json, "a list");
    for (Json each : json) {
      check_count(where, into.size());
      convert(each, where + "[" + std::to_string(into.size()) + "]", into.emplace_back());
    }
  }
  template <class T>
  void convert(Json json, const std::string& where, std::map<std::string, T>& into) {
    if (json.kind() != Json::kObject) return wrong(where, json, "an object");
    for (auto at = json.begin(); at != json.end(); ++at) {
      const std::string key((*at).text());
      ++at;
      check_count(where, into.size());
      convert(*at, where + "." + key, into[key]);
    }
  }
  void convert(Json json, const std::string& where, TensorSpec& into) {
    Fields fields(json, where, faults_);
    fields.required("name", into.name);
    std::vector<Axis> axes;
    fields.required("shape", axes);
    for (const Axis& axis : axes) into.shape.push_back(axis.size);
  }
  struct Axis {
    int64_t size = -1;
  };
  void convert(Json json, const std::string& where, Axis& into) {
    if (json.kind() != Json::kString) convert(json, where, into.size);
  }
  void convert(Json json, const std::string& where, Component& into) {
    Fields fields(json, where, faults_);
    fields.required("graph", into.graph);
    fields.required("inputs", into.inputs);
    fields.required("outputs", into.outputs);
  }
  void convert(Json json, const std::string& where, ImageSpec& into) {
    Fields fields(json, where, faults_);
    fields.required("height", into.height);
    fields.required("width", into.width);
    fields.required("resample", into.resample);
    fields.required("mean", into.mean);
    fields.required("std", into.std);
  }
  void convert(Json json, const std::string& where, LlmSpec& into) {
    Fields fields(json, where, faults_);
    for (auto [name, number] :
         {std::pair("layers", &into.layers), std::pair("kv_heads", &into.kv_heads),
          std::pair("head_dim", &into.head_dim), std::pair("hidden_size", &into.hidden_size),
          std::pair("vocab_size", &into.vocab_size), std::pair("max_positions", &into.max_positions),
          std::pair("prefix_length", &into.prefix_length)}) {
      fields.required(name, *number);
    }
    fields.required("bos_token_id", into.bos_token_id);
    fields.required("prepend_bos", into.prepend_bos);
    fields.required("eos_token_ids", into.eos_token_ids);
    fields.required("pad_token_id", into.pad_token_id);
    fields.required("tokenizer", into.tokenizer);
    fields.optional("add_special_tokens", into.add_special_tokens);
    fields.optional("empty_prompt_ids", into.empty_prompt_ids);
    fields.optional("encoder_decoder", into.encoder_decoder);
    fields.optional("decoder_start_token_id", into.decoder_start_token_id);
    fields.optional("image_token_id", into.image_token_id);
    fields.optional("clean_up_tokenization_spaces", into.clean_up_tokenization_spaces);
    fields.optional("bidirectional_prompt", into.bidirectional_prompt);
  }
  static void read_text(Fields& fields, QFormerTextSpec& into) {
    fields.required("tokenizer", into.tokenizer);
    fields.required("max_text_length", into.max_text_length);
    fields.required("pad_token_id", into.pad_token_id);
    fields.optional("clean_captions", into.clean_captions);
  }
  void convert(Json json, const std::string& where, RetrievalSpec& into) {
    Fields fields(json, where, faults_);
    read_text(fields, into);
    fields.optional("temperature", into.temperature);
    fields.optional("itm_weight", into.itm_weight);
    fields.optional("likelihood_weight", into.likelihood_weight);
    fields.optional("mean_prefix", into.mean_prefix);
    fields.optional("pool", into.pool);
  }
  void convert(Json json, const std::string& where, QuestionSpec& into) {
    Fields fields(json, where, faults_);
    read_text(fields, into);
    fields.optional("prompt", into.prompt);
  }
  void convert(Json json, const std::string& where, Decoding& into) {
    Fields fields(json, where, faults_);
    fields.optional("num_beams", into.num_beams);
    fields.optional("max_new_tokens", into.max_new_tokens);
    fields.optional("min_new_tokens", into.min_new_tokens);
    fields.optional("length_penalty", into.length_penalty);
  }
  void convert(Json json, const std::string& where, Logistic& into) {
    Fields fields(json, where, faults_);
    fields.required("bias", into.bias);
    fields.required("weights", into.weights);
  }
  void convert(Json json, const std::string& where, Calibration& into) {
    Fields fields(json, where, faults_);
    fields.optional("phrase", into.phrase);
    fields.optional("sentence", into.sentence);
    fields.optional("label", into.label);
    fields.optional("caption", into.caption);
    fields.optional("nearness", into.nearness);
    fields.optional("label_text", into.label_text);
    fields.optional("mean_text", into.mean_text);
    fields.optional("numbers", into.numbers);
  }
  void convert(Json json, const std::string& where, FileEntry& into) {
    Fields fields(json, where, faults_);
    fields.required("size", into.size);
    fields.required("sha256", into.sha256);
  }

  void check_count(const std::string& where, size_t count) {
    if (count < kMaxEntries) return;
    faults_.push_back(where + " has more than " + with_commas(kMaxEntries) + " entries");
    throw Error(ErrorKind::kModel, faults_);
  }

  Json json_;
  std::string where_;
  Faults& faults_;
};

Manifest build(Json json, Faults& faults) {
  Manifest manifest{};
  Fields fields(json, "", faults);
  fields.required("name", manifest.name);
  fields.required("created_by", manifest.created_by);
  fields.required("components", manifest.components);
  fields.required("image", manifest.image);
  fields.required("llm", manifest.llm);
  fields.required("retrieval", manifest.retrieval);
  fields.required("prompts", manifest.prompts);
  fields.required("decoding", manifest.decoding);
  fields.optional("question", manifest.question);
  fields.optional("files", manifest.files);
  fields.optional("calibration", manifest.calibration);
  fields.optional("target", manifest.target);
  return manifest;
}

bool has_tensor(const std::vector<TensorSpec>& tensors, const std::string& name) {
  return std::any_of(tensors.begin(), tensors.end(), [&](const TensorSpec& each) { return each.name == name; });
}

}  // namespace

bool Component::reads(const std::string& tensor) const { return has_tensor(inputs, tensor); }

bool Component::writes(const std::string& tensor) const { return has_tensor(outputs, tensor); }

Manifest read_manifest(std::string bytes, const std::string& file) {
  const auto damaged = [&file](const std::string& why) {
    return Error(ErrorKind::kModel, file + " is damaged: " + why);
  };
  if (!is_utf8(bytes)) throw damaged("not JSON (it is not UTF-8)");
  try {
    const JsonDocument document(bytes);
    const Json root = document.root();
    if (root.kind() != Json::kObject || root["format"].kind() != Json::kString ||
        root["format"].text() != "blip2rt-bundle") {
      throw Error(ErrorKind::kModel,
                  file + " is not the manifest of a blip2rt bundle (no \"format\": \"blip2rt-bundle\")");
    }
    const Json version = root["format_version"];
    if (version.kind() != Json::kNumber || version.number() < 1) {
      throw Error(ErrorKind::kModel, file + ": format_version is " + shown(version) + ", not a whole number from 1 up");
    }
    if (version.number() > 1) {
      throw Error(ErrorKind::kModel,
                  file + " has bundle format version " + shown(version) +
                      ", this blip2rt reads versions up to 1: install a newer blip2rt, or export the "
                      "bundle again with this one");
    }
    Faults faults;
    Manifest manifest;
    try {
      manifest = build(root, faults);
    } catch (const Error&) {  // too many: `faults` has them
    }
    if (faults.empty() && manifest.target != "ort") {
      throw Error(ErrorKind::kModel, file + " is of a bundle for the target " + quoted(manifest.target) +
                                         ", which this library cannot run: export it with blip2rt-export --target ort");
    }
    if (faults.empty()) faults = manifest_faults(manifest);
    if (faults.empty()) return manifest;
    faults.front() = file + " is damaged: " + faults.front();
    throw Error(ErrorKind::kModel, std::move(faults));
  } catch (const Error&) {
    throw;
  } catch (const std::runtime_error& error) {
    throw damaged(std::string("not JSON (") + error.what() + ")");
  }
}

}  // namespace blip2rt
