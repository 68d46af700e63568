// Turns rows of logits into the best scored tokens: log-softmax and selection without sorting or
// storing probabilities. Knows numbers only; not what a beam or a stop token is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace blip2rt {

struct Candidate {
  float score;
  int row;
  int token;
};

// The best `capacity` candidates offered so far, best first. Of equal scores the one offered first wins.
class TopK {
 public:
  explicit TopK(size_t capacity) : capacity_(capacity) { items_.reserve(capacity + 1); }
  void clear() { items_.clear(); }
  bool would_take(float score) const { return items_.size() < capacity_ || score > items_.back().score; }
  void offer(const Candidate& candidate);
  const std::vector<Candidate>& items() const { return items_; }

 private:
  size_t capacity_;
  std::vector<Candidate> items_;
};

// Scores the tokens of one row at a time. Keeps its scratch memory between rows.
class RowScorer {
 public:
  explicit RowScorer(size_t vocab_size);

  size_t vocab_size() const { return vocab_size_; }

  // Offers every token of `logits` to `best` with the score base + log_softmax(logits)[token]. Tokens in
  // `forbidden` count in the softmax, yet score -inf, as a Hugging Face logits processor would have it:
  // their entries of `logits` are overwritten. Throws when the logits are not finite.
  void score(float* logits, float base, int row, const std::vector<int64_t>& forbidden, TopK& best);

 private:
  size_t vocab_size_;
  std::vector<float> block_max_;  // (ceil(V / 64)): lets the selection skip nearly every block
};

}  // namespace blip2rt
