// The Reader of search_block.h, in vector code.
#pragma once

#include <cstddef>
#include <vector>

#include "base/tensor.h"
#include "search/options.h"
#include "search/scoring.h"
#include "search/search_block.h"

namespace blip2rt {

class CpuReader {
 public:
  CpuReader(const GenerationOptions& options, size_t vocab_size);

  void measure(const float* scores) { scorer_.measure(scores); }
  float largest() const { return scorer_.largest(); }
  float log_sum() const { return scorer_.log_sum(); }
  int argmax(const float* scores) const { return scorer_.argmax(scores); }
  void normalise(float* scores) { scorer_.normalise(scores); }
  void remeasure(const float* scores) { scorer_.remeasure(scores); }
  void offer(const float* scores, float base, int row, SearchBlock& block) const {
    scorer_.offer(scores, base, row, block);
  }

  const Sampler& sampler() const { return sampler_; }
  Bound top_k_bound(const float* scores, int n);
  Bound nucleus(const float* scores, int row, double p, Bound within, int& kept);
  double weigh(const float* scores, int row, Bound bound);

 private:
  struct ScoredToken {
    float score;
    int token;
  };

  static bool likelier(const ScoredToken& a, const ScoredToken& b) {
    return a.score > b.score || (a.score == b.score && a.token < b.token);
  }
  void collect(const float* scores, float least);

  size_t vocab_size_;
  RowScorer scorer_;
  std::vector<SampledRow> rows_;       // (num_beams)
  std::vector<float> weights_;         // (num_beams, V)
  std::vector<double> block_sums_;     // (num_beams, ceil(V / kBlock))
  std::vector<float> block_max_;       // scratch (ceil(V / kBlock))
  std::vector<ScoredToken> selected_;  // scratch (V): tokens above a bound
  Sampler sampler_;
};

}  // namespace blip2rt
