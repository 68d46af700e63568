// Values of a manifest that are out of range. The bounds are far above every existing model, and far below what would
// fill a machine's memory.
#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>

#include "base/parse.h"
#include "base/unicode.h"
#include "base/utf8.h"
#include "bundle/manifest.h"

namespace blip2rt {
namespace {

constexpr int64_t kMaxImageSide = 16'384, kMaxTokens = 10'000'000, kMaxTextLength = 1'024, kMaxBeams = 1'000;
constexpr size_t kMaxCharacters = 100'000, kMaxNumbers = 100, kMaxNumberCharacters = 100;
constexpr double kMaxWeight = 1e6;

const std::vector<std::string> kResample = {"nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"};
const std::vector<std::string> kTargets = {"ort", "trt"};

void check_choice(Faults& faults, const std::string& name, const std::string& value, const char* advice,
                  const std::vector<std::string>& choices) {
  if (std::find(choices.begin(), choices.end(), value) != choices.end()) return;
  faults.push_back(name + " is " + in_quotes(value) + ": " + advice + " " + joined(choices, ", "));
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

void check_length(Faults& faults, const std::string& name, const std::string& text, size_t limit = kMaxCharacters) {
  const size_t size = count_characters(text);
  if (size <= limit) return;
  faults.push_back(name + " has " + with_commas(size) + " characters, more than " + with_commas(limit));
}

void check_image(Faults& faults, const ImageSpec& image) {
  const auto is_mean = [](double x) { return std::fabs(x) <= 100; };
  const auto is_std = [](double x) { return x >= 1e-4 && x <= 100; };
  if (image.mean.size() != 3 || image.std.size() != 3 || !std::all_of(image.mean.begin(), image.mean.end(), is_mean) ||
      !std::all_of(image.std.begin(), image.std.end(), is_std)) {
    faults.push_back("image.mean needs three numbers from -100 to 100, image.std three from 0.0001 to 100");
  }
  check_choice(faults, "image.resample", image.resample, "choose from", kResample);
  check_range(faults, "image.height", image.height, kMaxImageSide);
  check_range(faults, "image.width", image.width, kMaxImageSide);
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

void check_text(Faults& faults, const std::string& section, const QFormerTextSpec& spec) {
  check_range(faults, section + ".max_text_length", spec.max_text_length, kMaxTextLength);
  check_token(faults, section + ".pad_token_id", spec.pad_token_id);
}

void check_retrieval(Faults& faults, const Manifest& manifest) {
  const RetrievalSpec& spec = *manifest.retrieval;
  check_text(faults, "retrieval", spec);
  for (auto [name, value, low] :
       {std::tuple("temperature", spec.temperature, 1e-4), std::tuple("itm_weight", spec.itm_weight, 0.0),
        std::tuple("likelihood_weight", spec.likelihood_weight, 0.0)}) {
    if (value >= low && value <= 1e4) continue;
    faults.push_back(std::string("retrieval.") + name + " is " + number_text(value) + ", not from " +
                     (low > 0 ? "0.0001" : "0") + " to 10,000");
  }
  if (spec.likelihood_weight != 0 && (!manifest.llm || !spec.mean_prefix)) {
    faults.push_back("retrieval.likelihood_weight is given without a language model or retrieval.mean_prefix");
  }
  if (spec.pool && (!manifest.llm || manifest.llm->eos_token_ids.empty())) {
    faults.push_back("retrieval.pool is given without a language model or llm.eos_token_ids");
  }
}

void check_weight(Faults& faults, const std::string& name, double weight) {
  if (std::fabs(weight) <= kMaxWeight) return;
  faults.push_back(name + " is " + number_text(weight) + ", not from -1,000,000 to 1,000,000");
}

void check_weights(Faults& faults, const std::string& name, const std::vector<double>& weights) {
  for (size_t i = 0; i < weights.size(); ++i) check_weight(faults, name + "[" + std::to_string(i) + "]", weights[i]);
}

void check_calibration(Faults& faults, const Calibration& calibration) {
  for (const auto& [name, regression] : calibration.regressions()) {
    check_weight(faults, name + ".bias", regression->bias);
    for (const auto& [signal, weight] : regression->weights) check_weight(faults, name + "." + signal, weight);
  }
  check_weights(faults, "calibration.label_text", calibration.label_text);
  check_weights(faults, "calibration.mean_text", calibration.mean_text);
  const std::vector<std::string>& numbers = calibration.numbers;
  if (numbers.size() > kMaxNumbers) {
    faults.push_back("calibration.numbers has " + with_commas(numbers.size()) + " answers, more than " +
                     std::to_string(kMaxNumbers));
  }
  for (const std::string& number : numbers) {
    check_length(faults, "an answer of calibration.numbers", number, kMaxNumberCharacters);
  }
}

}  // namespace

Faults value_faults(const Manifest& manifest) {
  Faults faults;
  check_choice(faults, "target", manifest.target, "this blip2rt knows", kTargets);
  check_image(faults, manifest.image);
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
  if (manifest.calibration) check_calibration(faults, *manifest.calibration);
  return faults;
}

}  // namespace blip2rt
