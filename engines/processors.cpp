// Logits processors. Knows token ids and scores.
#include "processors.h"

#include <algorithm>
#include <limits>

namespace blip2rt {
namespace {

constexpr float kForbidden = -std::numeric_limits<float>::infinity();

}  // namespace

Processors::Processors(const GenerationOptions& options, size_t longest)
    : options_(options), penalty_(static_cast<float>(options.repetition_penalty)), penalised_(longest) {}

void Processors::apply(float* scores, const int64_t* history, size_t length, int new_tokens) {
  if (penalise()) penalise_repetition(scores, history, length);
  if (options_.no_repeat_ngram_size > 0) forbid_repeated_ngrams(scores, history, length);
  forbid_bad_words(scores, history, length);
  if (new_tokens < options_.min_new_tokens) {
    for (int64_t token : options_.eos_token_ids) scores[token] = kForbidden;
  }
}

void Processors::penalise_repetition(float* scores, const int64_t* history, size_t length) {
  for (size_t i = 0; i < length; ++i) {  // all are read before any is written: a token counts once
    const float score = scores[history[i]];
    penalised_[i] = score < 0 ? score * penalty_ : score / penalty_;
  }
  for (size_t i = 0; i < length; ++i) scores[history[i]] = penalised_[i];
}

void Processors::forbid_repeated_ngrams(float* scores, const int64_t* history, size_t length) const {
  const auto size = static_cast<size_t>(options_.no_repeat_ngram_size);
  if (length < size) return;
  const int64_t* begun = history + length - (size - 1);  // the n-gram that the next token would complete
  for (size_t start = 0; start + size <= length; ++start) {
    if (std::equal(begun, history + length, history + start)) scores[history[start + size - 1]] = kForbidden;
  }
}

void Processors::forbid_bad_words(float* scores, const int64_t* history, size_t length) const {
  const auto& stops = options_.eos_token_ids;
  for (const auto& word : options_.bad_words_ids) {
    const size_t begun = word.size() - 1;
    if (begun > length || !std::equal(word.begin(), word.end() - 1, history + length - begun)) continue;
    // A stop token alone is no word.
    if (begun == 0 && std::find(stops.begin(), stops.end(), word[0]) != stops.end()) continue;
    scores[word.back()] = kForbidden;
  }
}

}  // namespace blip2rt
