// Draws tokens from rows of scores: temperature, top-k, top-p and min-p with the meaning of Hugging Face's logits
// warpers, and random numbers of our own, so that a seed gives the same text on every machine. Knows scores only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "options.h"
#include "scoring.h"

namespace blip2rt {

// SplitMix64. Streams of one seed are independent of each other.
class Random {
 public:
  Random(uint64_t seed, uint64_t image, uint64_t draw);
  double uniform();  // [0, 1)

 private:
  uint64_t state_;
};

class Sampler {
 public:
  // `options` must outlive this.
  Sampler(const GenerationOptions& options, size_t vocab_size);

  void clear() { rows_.clear(); }

  // Adds a row of scores, which `measured` has just measured. A token is drawn with the weight
  // exp(base + score / temperature), or not at all where the options leave it out.
  void add(const float* scores, const RowScorer& measured, float base);

  // The token is not drawn again. Nothing when none is left. Candidates have the score base + score / temperature.
  std::optional<Candidate> draw(Random& random);

 private:
  struct Row {
    const float* scores;
    float base;
    double log_weight;  // by which the weights in weights_ are to be multiplied
    double sum;         // of its weights in weights_
  };
  struct Kept {
    float score;
    int token;
  };
  // Drawn from are tokens of a larger score, and of an equal one those up to `token`.
  struct Bound {
    float score = std::numeric_limits<float>::lowest();
    int token = std::numeric_limits<int>::max();
  };

  static bool likelier(const Kept& a, const Kept& b) {
    return a.score > b.score || (a.score == b.score && a.token < b.token);
  }
  Bound largest(size_t count, const float* scores, const RowScorer& measured);
  Bound top_p(const float* scores, const RowScorer& measured, Bound within);
  Bound min_p(const float* scores, const RowScorer& measured);
  void collect(const float* scores, const RowScorer& measured, float least);
  double weigh_row(const float* scores, const RowScorer& measured, Bound bound);
  size_t pick(size_t row, double left) const;
  float* weights(size_t row) { return weights_.data() + row * vocab_size_; }
  const float* weights(size_t row) const { return weights_.data() + row * vocab_size_; }
  double* block_sums(size_t row) { return block_sums_.data() + row * blocks_; }
  const double* block_sums(size_t row) const { return block_sums_.data() + row * blocks_; }

  const GenerationOptions& options_;
  size_t vocab_size_, blocks_;
  size_t fewest_;                   // tokens of a row that the options leave at least
  float scale_;                     // 1 / temperature
  std::vector<Row> rows_;           // (at most num_beams)
  std::vector<float> weights_;      // (num_beams, V), relative to the row's likeliest token
  std::vector<double> block_sums_;  // (num_beams, ceil(V / kBlock)) of weights_
  std::vector<float> block_max_;    // scratch (ceil(V / kBlock))
  std::vector<Kept> kept_;          // scratch (V): tokens from a bound on
};

}  // namespace blip2rt
