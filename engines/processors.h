// Edits the scores of the next token as the options ask, with the meaning of Hugging Face's logits processors:
// repetition penalty, no repeated n-grams, bad words, no stop token before min_new_tokens. Knows token ids and scores.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "options.h"

namespace blip2rt {

class Processors {
 public:
  // `options` must outlive this. Histories will be at most `longest` tokens long.
  Processors(const GenerationOptions& options, size_t longest);

  // Whether scores are changed by more than setting some to -inf.
  bool penalise() const { return penalty_ != 1.0f; }

  // `scores` (V) of the token after `history` (length), the last `new_tokens` of which were chosen and not given.
  void apply(float* scores, const int64_t* history, size_t length, int new_tokens);

 private:
  void penalise_repetition(float* scores, const int64_t* history, size_t length);
  void forbid_repeated_ngrams(float* scores, const int64_t* history, size_t length) const;
  void forbid_bad_words(float* scores, const int64_t* history, size_t length) const;

  const GenerationOptions& options_;
  float penalty_;
  std::vector<float> penalised_;  // scratch (longest)
};

}  // namespace blip2rt
