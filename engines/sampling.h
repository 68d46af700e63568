// Draws a token from a row of scores: temperature, top-k, top-p and min-p with the meaning of Hugging Face's logits
// warpers, and random numbers of our own, so that a seed gives the same text on every machine. Knows scores only.
#pragma once

#include <cstddef>
#include <cstdint>
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

  int draw_from_all(const float* scores, const RowScorer& measured, double where);
  int draw_from_kept(float largest, double where);
  void keep(const float* scores, const RowScorer& measured);
  void keep_top_k();
  void keep_top_p();
  float weight(float score, float largest) const { return exp_of_nonpositive((score - largest) * scale_); }

  const GenerationOptions& options_;
  float scale_;                     // 1 / temperature
  std::vector<float> weights_;      // scratch (V)
  std::vector<double> block_sums_;  // scratch (ceil(V / kBlock))
  std::vector<float> block_max_;    // scratch (ceil(V / kBlock))
  std::vector<Kept> kept_;          // scratch (V): what top-k and top-p leave
};

}  // namespace blip2rt
