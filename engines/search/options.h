// The generation options, with the names and meanings of Hugging Face's `generate` with inputs_embeds: lengths and
// histories count only the answer's tokens, unless counts_prompt is set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "search/guide.h"
#include "search/repeated_words.h"
#include "search/search_block.h"
#include "search/vocabulary.h"

namespace blip2rt {

struct GenerationOptions {
  int num_beams = 1;
  int num_return_sequences = 1;  // with beams, the best ones; sampling with one beam, independent draws
  int max_new_tokens = 20;
  int min_new_tokens = 0;
  double length_penalty = 1.0;
  EarlyStopping early_stopping = EarlyStopping::kFalse;

  double repetition_penalty = 1.0;                      // 1: off
  int no_repeat_ngram_size = 0;                         // 0: off
  std::shared_ptr<const RepeatedWords> repeated_words;  // rules them out on the CPU; null: off
  // Repetition, n-grams, bad words and stop strings also see the tokens before the answer, as with input_ids next to
  // inputs_embeds. `image_token_id` stands for each of the image's positions; negative: none does.
  bool counts_prompt = false;
  int64_t image_token_id = -1;
  std::vector<std::vector<int64_t>> bad_words_ids;
  std::vector<int64_t> forced_prefix;  // the answer's first tokens, like `input_ids` next to inputs_embeds

  std::vector<int64_t> eos_token_ids;
  std::vector<std::string> stop_strings;                      // bytes
  std::shared_ptr<const Vocabulary> vocabulary;               // required by stop_strings
  double max_time = std::numeric_limits<double>::infinity();  // seconds, after which no further token is chosen

  bool do_sample = false;
  double temperature = 1.0;
  int top_k = 0;       // 0: off
  double top_p = 1.0;  // 1: off
  double min_p = 0.0;  // 0: off
  uint64_t seed = 0;
  std::vector<std::shared_ptr<const Guide>> guides;  // of each image of the call, or none

  uint64_t first_image = 0;  // image i of the call uses the stream first_image + i

  // Returns all faults, separated by "; ", or an empty string.
  std::string faults(size_t vocab_size) const;

  // Throws std::runtime_error with all faults.
  void validate(size_t vocab_size) const;

  // Returns whether an image's answers are independent draws rather than the best of one search.
  bool draws_independently() const { return do_sample && num_beams == 1; }

  // Returns the number of rows decoded together per image.
  int rows_each() const { return draws_independently() ? num_return_sequences : num_beams; }

  // Appends the tokens that represent `positions` of an image.
  void append_image(std::vector<int64_t>& tokens, size_t positions) const {
    if (image_token_id >= 0) tokens.insert(tokens.end(), positions, image_token_id);
  }

  // Returns the candidates kept in a step of beam search: enough to continue num_beams of them even if every beam's
  // best tokens are stop tokens.
  size_t candidate_count() const;
};

}  // namespace blip2rt
