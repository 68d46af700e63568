// Draws a token from a row of scores: temperature, top-k, top-p and min-p with the meaning of Hugging Face's logits
// warpers, and random numbers of our own, so that a seed gives the same text on every machine. Knows scores only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
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

  // A token of `scores`, which `measured` has just measured. Throws when every token is forbidden.
  int draw(const float* scores, const RowScorer& measured, Random& random);

 private:
  struct Kept {
    float score;
    int token;
  };

  static bool likelier(const Kept& a, const Kept& b) {
    return a.score > b.score || (a.score == b.score && a.token < b.token);
  }
  // Drawn from are tokens of a larger score, and of an equal one those up to `token`.
  struct Bound {
    float score = -std::numeric_limits<float>::infinity();
    int token = std::numeric_limits<int>::max();
  };

  Bound top_k(const float* scores, const RowScorer& measured);
  Bound top_p(const float* scores, const RowScorer& measured, Bound within);
  void collect(const float* scores, const RowScorer& measured, Bound bound);
  void weigh(const float* scores, const RowScorer& measured, Bound bound);
  int pick(double where, int likeliest) const;
  float weight(float score, float largest) const { return exp_of_nonpositive((score - largest) * scale_); }

  const GenerationOptions& options_;
  float scale_;                     // 1 / temperature
  std::vector<float> weights_;      // scratch (V)
  std::vector<double> block_sums_;  // scratch (ceil(V / kBlock))
  std::vector<float> block_max_;    // scratch (ceil(V / kBlock))
  std::vector<Kept> kept_;          // scratch (V): tokens above a bound
};

}  // namespace blip2rt
