// The manifest of a bundle, blip2rt.json, with every check of blip2rt.bundle; see docs/bundle.md. Touches no files.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "media/image.h"
#include "model/options.h"

namespace blip2rt {

struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;  // -1 for a free axis
};

struct Component {
  std::string graph;  // file name inside the bundle
  std::vector<TensorSpec> inputs, outputs;

  bool reads(const std::string& tensor) const;
  bool writes(const std::string& tensor) const;
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
  bool clean_up_tokenization_spaces = false, bidirectional_prompt = false;
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

// A logistic regression: P = 1 / (1 + exp(-bias - the sum of weight * signal)).
struct Logistic {
  double bias;
  std::map<std::string, double> weights;  // by the name of the signal
};

// How signals of an image and a text become probabilities.
struct Calibration {
  std::optional<Logistic> phrase, sentence, label, caption, nearness;
  std::vector<double> label_text, mean_text;  // (E)
  std::vector<std::string> numbers;           // answers to "how many ...?"; none: answers are generated
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
  std::map<std::string, FileEntry> files;
  std::optional<Calibration> calibration;

  bool has(const std::string& component) const { return components.count(component) != 0; }
};

// Parses a manifest, whose bytes are changed. Throws Error with every fault; `file` names it.
Manifest read_manifest(std::string bytes, const std::string& file);

// The faults of a manifest whose types are right.
Faults manifest_faults(const Manifest& manifest);

}  // namespace blip2rt
