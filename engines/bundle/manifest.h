// The manifest of a bundle, blip2rt.json: its fields, and every check of it; docs/inside/bundle.md. Touches no files.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "base/error.h"

namespace blip2rt {

using Axis = std::variant<int64_t, std::string>;  // the size of a tensor's axis, or the name of a free one

struct TensorSpec {
  std::string name, dtype;
  std::vector<Axis> shape;
};

// A tensor's shape as messages show it: ['B', 3, 224, 224].
std::string shown_shape(const TensorSpec& tensor);

// One ONNX graph.
struct Component {
  std::string graph;  // file name inside the bundle
  std::string precision;
  std::vector<TensorSpec> inputs, outputs;

  // Return nullptr if there is no such tensor.
  const TensorSpec* input(const std::string& name) const;
  const TensorSpec* output(const std::string& name) const;
};

struct ImageSpec {
  int64_t height, width;
  std::string resample;
  std::vector<double> mean, std;
};

struct LlmSpec {
  int64_t layers, kv_heads, head_dim, hidden_size, vocab_size, max_positions, prefix_length;
  std::optional<int64_t> bos_token_id;
  bool prepend_bos;
  std::vector<int64_t> eos_token_ids;
  int64_t pad_token_id;
  std::string tokenizer;
  bool add_special_tokens = false;
  std::optional<std::vector<int64_t>> empty_prompt_ids;
  bool encoder_decoder = false;
  std::optional<int64_t> decoder_start_token_id, image_token_id;
  bool clean_up_tokenization_spaces = false;
};

// How text enters the Q-Former: to be matched, or as a question.
struct QFormerTextSpec {
  std::string tokenizer;
  int64_t max_text_length, pad_token_id;
  bool clean_captions = false;
};

struct RetrievalSpec : QFormerTextSpec {
  double temperature = 0.07, itm_weight = 1.0, likelihood_weight = 0.0;
  std::optional<std::string> mean_prefix, pool;
};

struct QuestionSpec : QFormerTextSpec {
  std::string prompt = "{}";
};

// A task's defaults.
struct Decoding {
  int64_t num_beams = 1, max_new_tokens = 30, min_new_tokens = 1;
  double length_penalty = 1.0;
  bool no_repeat_words = false;
};

// A logistic regression: P = 1 / (1 + exp(-bias - the sum of weight * signal)).
struct Logistic {
  double bias;
  std::map<std::string, double> weights;  // by the name of the signal
};

// How signals of an image and a text become probabilities.
struct Calibration {
  std::optional<Logistic> phrase, sentence, statement, label, caption, nearness;
  std::vector<double> label_text, mean_text;  // (E)
  std::vector<std::string> numbers;           // answers to "how many ...?"; none: answers are generated

  std::vector<std::pair<std::string, const Logistic*>> regressions() const;  // that are given, with their places
};

struct Source {
  std::string part, name, licence, origin;
};

struct Verification {
  std::string component, precision;
  double max_abs_error;
  std::optional<double> cosine, agreement;
};

struct FileEntry {
  int64_t size;
  std::string sha256;
};

struct Manifest {
  std::string name, created_by, target = "ort";
  std::map<std::string, Component> components;
  ImageSpec image;
  std::optional<LlmSpec> llm;
  std::optional<RetrievalSpec> retrieval;
  std::map<std::string, std::string> prompts;
  std::map<std::string, Decoding> decoding;
  std::optional<QuestionSpec> question;
  std::vector<Source> sources;
  std::vector<Verification> verification;
  std::map<std::string, FileEntry> files;
  std::optional<Calibration> calibration;

  bool has(const std::string& component) const { return components.count(component) != 0; }
  const Component* component(const std::string& name) const;  // nullptr if there is none
};

inline const std::vector<std::string> kGenerative = {"qformer", "embed", "llm"};
inline const std::vector<std::string> kRetrieval = {"image_embed", "text_embed", "itm"};

// What the tensors of a component depend on: the language model's layers, and what runs the graph.
struct ComponentKind {
  int64_t layers = 0;
  bool encoder_decoder = false;
  std::string target = "ort";
};

struct TensorNames {
  std::vector<std::string> inputs, outputs;
};

// The names of a component's inputs and outputs, each layer's key before its value. A Q-Former that reads questions
// also has those of a text.
TensorNames component_tensors(const std::string& name, const ComponentKind& kind);

// Parses a manifest, whose bytes are changed. Throws Error with every fault; `file` names it.
Manifest read_manifest(std::string bytes, const std::string& file);

// The faults of a manifest whose types are right: of its values; if there are none, of its components and file names,
// and of sizes that its parts give differently.
Faults value_faults(const Manifest& manifest);
Faults component_faults(const Manifest& manifest);
Faults size_faults(const Manifest& manifest);

}  // namespace blip2rt
