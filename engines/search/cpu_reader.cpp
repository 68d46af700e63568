// Selects the tokens that sampling may draw, without sorting.
#include "search/cpu_reader.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

namespace blip2rt {

static_assert(Sampler::kBlock == static_cast<int32_t>(RowScorer::kBlock),
              "the sampler sums the blocks that the scorer measures");

CpuReader::CpuReader(const GenerationOptions& options, size_t vocab_size)
    : vocab_size_(vocab_size),
      scorer_(vocab_size),
      sampler_{static_cast<int32_t>(vocab_size), static_cast<float>(1.0 / options.temperature), nullptr, nullptr,
               nullptr} {
  if (!options.do_sample) return;
  const auto rows = static_cast<size_t>(options.num_beams);
  const auto blocks = static_cast<size_t>(Sampler::blocks(sampler_.vocab_size));
  rows_.resize(rows);
  weights_.resize(product_of(rows, vocab_size));
  block_sums_.resize(rows * blocks);
  block_max_.resize(blocks);
  selected_.reserve(vocab_size);
  sampler_.rows = rows_.data();
  sampler_.weights = weights_.data();
  sampler_.block_sums = block_sums_.data();
}

Bound CpuReader::top_k_bound(const float* scores, int n) {
  const auto count = static_cast<size_t>(n);
  Bound bound;
  if (count > vocab_size_) return bound;
  if (count <= block_max_.size()) {  // at least `count` scores reach the count-th largest block maximum
    block_max_ = scorer_.block_max();
    const auto last = block_max_.begin() + static_cast<ptrdiff_t>(count - 1);
    std::nth_element(block_max_.begin(), last, block_max_.end(), std::greater<>());
    bound.score = std::max(bound.score, *last);
  }
  collect(scores, bound.score);
  if (count > selected_.size()) return Bound();
  const auto last = selected_.begin() + static_cast<ptrdiff_t>(count - 1);
  std::nth_element(selected_.begin(), last, selected_.end(), likelier);
  return {last->score, kNoToken};
}

// Finds by bisection the token with which the likeliest tokens together reach p of the weight that `within` leaves.
Bound CpuReader::nucleus(const float* scores, int row, double p, Bound within, int& kept) {
  const double total = weigh(scores, row, within);
  const float* weights = sampler_.row_weights(row);
  // Skips light tokens: few heavy ones often have enough weight. At the last try, all lighter ones together have less
  // than 1 - p of it.
  const double most = 2 * static_cast<double>(vocab_size_);
  for (double count = 256, found = 0; found <= p * total && count < 16 * most; count *= 16) {
    const double light = (1 - p) * total / std::min(count, most);
    const auto least = static_cast<float>(largest() + std::log(light) / sampler_.scale);
    collect(scores, std::max(within.score, least));
    found = 0;
    for (const auto& one : selected_) found += weights[one.token];
  }
  double wanted = p * total;  // the weight still missing from `first` on
  auto first = selected_.begin(), end = selected_.end();
  while (end - first > 1) {
    const auto middle = first + (end - first) / 2;
    std::nth_element(first, middle, end, likelier);
    double ahead = 0;
    for (auto one = first; one != middle; ++one) ahead += weights[one->token];
    if (ahead >= wanted) {
      end = middle;
    } else {
      wanted -= ahead;
      first = middle;
    }
  }
  kept = static_cast<int>(first - selected_.begin()) + 1;
  return {first->score, first->token};
}

// Fills selected_ with the tokens that score at least `least`.
void CpuReader::collect(const float* scores, float least) {
  selected_.clear();
  const std::vector<float>& block_max = scorer_.block_max();
  for (size_t block = 0; block < block_max.size(); ++block) {
    if (block_max[block] < least) continue;
    const size_t end = std::min(vocab_size_, (block + 1) * RowScorer::kBlock);
    for (size_t i = block * RowScorer::kBlock; i < end; ++i) {
      if (scores[i] >= least) selected_.push_back({scores[i], static_cast<int>(i)});
    }
  }
}

double CpuReader::weigh(const float* scores, int row, Bound bound) {
  float* weights = sampler_.row_weights(row);
  double* sums = sampler_.row_sums(row);
  double total = 0;
  const std::vector<float>& block_max = scorer_.block_max();
  for (size_t block = 0; block < block_max.size(); ++block) {
    sums[block] = 0;
    if (block_max[block] < bound.score) continue;
    const size_t first = block * RowScorer::kBlock, end = std::min(vocab_size_, first + RowScorer::kBlock);
    sums[block] =
        blip2rt::weigh(scores + first, weights + first, end - first, scorer_.largest(), sampler_.scale, bound.score);
    if (static_cast<int>(end) > bound.token) {  // ties with the bound: drop the larger tokens
      for (size_t i = first; i < end; ++i) {
        if (scores[i] == bound.score && static_cast<int>(i) > bound.token) weights[i] = 0;
      }
      sums[block] = std::accumulate(weights + first, weights + end, 0.0);
    }
    total += sums[block];
  }
  return total;
}

}  // namespace blip2rt
