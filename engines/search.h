// Chooses the tokens of one answer: greedy, sampling, beam search and both, with the meaning of Hugging Face
// `generate`. Knows scores and token ids; nothing about graphs, caches or other images.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "options.h"
#include "processors.h"
#include "sampling.h"
#include "scoring.h"
#include "stop_strings.h"

namespace blip2rt {

struct Hypothesis {
  std::vector<int64_t> tokens;  // new tokens only, without the stop token
  float score;                  // sum of log-probabilities / length^length_penalty, the stop token counted
};

// Candidates looked at in a step of beam search: even when every beam's best tokens are stop tokens, num_beams that go
// on remain.
size_t candidates_kept(const GenerationOptions& options);

class Search {
 public:
  // `options` must outlive the search. `given`: tokens with which the answer begins; processors and stop strings see
  // them. `random` is drawn from when sampling.
  Search(const GenerationOptions& options, size_t vocab_size, const std::vector<int64_t>& given, const Random& random);

  // Takes one step; allocates nothing. `scores` (rows, V), the logits, are overwritten; rows is 1 in the first step,
  // when all beams are still the same, and num_beams after it. `last`: this step's tokens are the last.
  void advance(float* scores, int rows, bool last);

  bool done() const { return done_; }
  int length() const { return length_; }  // tokens chosen so far, the same for every running beam

  // What to feed next: beam b goes on from what was beam parents()[b] before the step, with tokens()[b]. A beam that is
  // another's parent stays where it is: parents()[parents()[b]] == parents()[b].
  const std::vector<int64_t>& tokens() const { return tokens_; }
  const std::vector<int>& parents() const { return parents_; }

  // With one beam: the token that the step added to the answer; nothing when that was a stop token.
  std::optional<int64_t> added() const;

  // The best num_return_sequences, best first. Before done(), what there is.
  std::vector<Hypothesis> results() const;

 private:
  struct Finished {
    float score;
    size_t row;     // of finished_tokens_
    size_t length;  // without the stop token
  };

  void choose_one(float* scores);
  void choose_beams(float* scores, int rows);
  void offer_beam(float* scores, int row);
  void sample_beam(float* scores, int row);
  void draw_beams();
  void go_on(size_t beam, const Candidate& candidate);
  void place_running();
  void finish(const Candidate& candidate);
  bool can_improve() const;
  bool is_eos(int64_t token) const;
  bool stops(const Candidate& candidate);
  float normalised(float sum, int length) const;
  int64_t* history(size_t row) { return history_.data() + row * longest_; }
  const int64_t* history(size_t row) const { return history_.data() + row * longest_; }
  size_t written() const { return given_ + static_cast<size_t>(length_); }

  const GenerationOptions& options_;
  size_t given_, longest_;  // tokens given, and at most in a history
  int length_ = 0;
  bool last_ = false, done_ = false;
  RowScorer scorer_;
  Processors processors_;
  Sampler sampler_;
  StopStrings stop_strings_;
  Random random_;
  TopK best_;
  std::vector<Candidate> running_;           // of a step, best first (num_beams)
  std::vector<int64_t> tokens_;              // (num_beams)
  std::vector<int> parents_;                 // (num_beams)
  std::vector<float> scores_, next_scores_;  // (num_beams) sums of log-probabilities
  std::vector<int64_t> history_;             // (num_beams, longest): given and chosen tokens
  std::vector<Finished> finished_;           // best first, at most num_beams
  std::vector<int64_t> finished_tokens_;     // (num_beams, max_new_tokens)
};

}  // namespace blip2rt
