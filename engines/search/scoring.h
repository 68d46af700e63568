// Reads rows of scores, one per token: log-softmax, and selection without sorting.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "search/search_block.h"

namespace blip2rt {

// Exponentials do not use libm. Their relative error is below 4e-7 down to exp(-5), and below 4e-6 down to exp(-87);
// lower exponents count as -87.

// Writes weights[i] = exp((scores[i] - largest) * scale) if scores[i] is at least `least`, otherwise 0. Returns the
// sum.
double weigh(const float* scores, float* weights, size_t count, float largest, float scale, float least);

// Reads one row at a time, of a fixed length: call `measure` first. Keeps its scratch memory between rows.
class RowScorer {
 public:
  static constexpr size_t kBlock = 64;

  explicit RowScorer(size_t vocab_size);

  // Reads the row. Throws if a score is NaN or +inf; -inf is a forbidden token.
  void measure(const float* scores);

  float largest() const { return largest_; }
  float log_sum() const { return log_sum_; }  // log(sum(exp(score - largest))), NaN if every token is forbidden
  int argmax(const float* scores) const;      // the first token with the largest score
  size_t vocab_size() const { return vocab_size_; }
  const std::vector<float>& block_max() const { return block_max_; }  // (ceil(V / kBlock))

  // Replaces the row by its log-probabilities. offer() then keeps them as they are.
  void normalise(float* scores);
  // Reads a normalised row again after some scores were changed.
  void remeasure(const float* scores) { find_block_max(scores); }

  // Offers every token with the score base + its measured log-probability. Tokens set to -inf since then keep -inf.
  void offer(const float* scores, float base, int row, SearchBlock& best) const;

 private:
  void find_block_max(const float* scores);

  size_t vocab_size_;
  float largest_ = 0, log_sum_ = 0;
  std::vector<float> block_max_;  // lets the selection skip nearly every block
};

}  // namespace blip2rt
