// Chooses the tokens of one image: greedy and beam search with the meaning of Hugging Face `generate`.
// Knows logits and token ids; nothing about graphs, caches or other images.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "scoring.h"

namespace blip2rt {

enum class EarlyStopping { kFalse, kTrue, kNever };

struct SearchOptions {
  int num_beams = 1;
  int num_return_sequences = 1;
  int max_new_tokens = 20;
  int min_new_tokens = 0;
  double length_penalty = 1.0;
  EarlyStopping early_stopping = EarlyStopping::kFalse;
  std::vector<int64_t> eos_token_ids;

  // Reports every fault at once, as std::runtime_error.
  void validate(size_t vocab_size) const;
};

struct Hypothesis {
  std::vector<int64_t> tokens;  // new tokens only, without the stop token
  float score;                  // sum of log-probabilities / length^length_penalty, the stop token counted
};

class Search {
 public:
  // `options` must outlive the search. A search can be moved while it runs.
  Search(const SearchOptions& options, size_t vocab_size);

  // Takes one step. `logits` (rows, V) is overwritten where tokens are forbidden; rows is 1 in the first
  // step, when all beams are still the same, and num_beams after it.
  void advance(float* logits, int rows);

  bool done() const { return done_; }

  // What to feed next: beam b goes on from what was beam parents()[b] before the step, with tokens()[b].
  const std::vector<int64_t>& tokens() const { return tokens_; }
  const std::vector<int>& parents() const { return parents_; }

  // The best num_return_sequences, best first; once done().
  std::vector<Hypothesis> results() const;

 private:
  void choose_greedy();
  void choose_beams();
  void keep_running(const Candidate& candidate, int beam);
  void finish(const Candidate& candidate);
  bool can_improve() const;
  bool is_eos(int64_t token) const;
  float normalised(float sum, int length) const;

  const SearchOptions* options_;
  int length_ = 0;  // tokens chosen so far, the same for every running beam
  bool done_ = false;
  std::vector<int64_t> forbidden_;
  RowScorer scorer_;
  TopK best_;
  std::vector<int64_t> tokens_;                  // (num_beams)
  std::vector<int> parents_;                     // (num_beams)
  std::vector<float> scores_, next_scores_;      // (num_beams) sums of log-probabilities
  std::vector<int64_t> history_, next_history_;  // (num_beams, max_new_tokens)
  std::vector<Hypothesis> finished_;             // best first, at most num_beams
};

}  // namespace blip2rt
