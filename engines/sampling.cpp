// Sampling. Knows scores only.
#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <stdexcept>

namespace blip2rt {
namespace {

uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

constexpr uint64_t kStep = 0x9e3779b97f4a7c15u;

}  // namespace

Random::Random(uint64_t seed, uint64_t image, uint64_t draw)
    : state_(mix(mix(mix(seed + kStep) + image + kStep) + draw + kStep)) {}

double Random::uniform() {
  state_ += kStep;
  return static_cast<double>(mix(state_) >> 11) * 0x1p-53;
}

Sampler::Sampler(const GenerationOptions& options, size_t vocab_size)
    : options_(options), scale_(static_cast<float>(1.0 / options.temperature)) {
  if (!options.do_sample) return;
  const size_t blocks = (vocab_size + RowScorer::kBlock - 1) / RowScorer::kBlock;
  weights_.resize(vocab_size);
  block_sums_.resize(blocks);
  block_max_.resize(blocks);
  kept_.reserve(vocab_size);
}

int Sampler::draw(const float* scores, const RowScorer& measured, Random& random) {
  if (!std::isfinite(measured.largest())) {
    throw std::runtime_error("the options forbid every token: there is nothing to draw");
  }
  Bound bound;
  if (options_.top_k > 0) bound = top_k(scores, measured);
  if (options_.top_p < 1) bound = top_p(scores, measured, bound);
  weigh(scores, measured, bound);
  return pick(random.uniform(), measured.argmax(scores));
}

// The k-th largest score: of equals all stay.
Sampler::Bound Sampler::top_k(const float* scores, const RowScorer& measured) {
  const auto k = static_cast<size_t>(options_.top_k);
  Bound bound;
  if (k <= block_max_.size()) {  // at least k scores are not below the k-th largest maximum of a block
    block_max_ = measured.block_max();
    const auto kth = block_max_.begin() + static_cast<ptrdiff_t>(k - 1);
    std::nth_element(block_max_.begin(), kth, block_max_.end(), std::greater<>());
    bound.score = *kth;
  }
  collect(scores, measured, bound);
  if (k > kept_.size()) return Bound();
  const auto kth = kept_.begin() + static_cast<ptrdiff_t>(k - 1);
  std::nth_element(kept_.begin(), kth, kept_.end(), likelier);
  return {kth->score, std::numeric_limits<int>::max()};
}

// The token with which the likeliest ones together have top_p of what `within` leaves: found by halves.
Sampler::Bound Sampler::top_p(const float* scores, const RowScorer& measured, Bound within) {
  collect(scores, measured, within);
  const float largest = measured.largest();
  double total = 0;
  for (const Kept& one : kept_) total += weight(one.score, largest);
  double wanted = options_.top_p * total;  // by those from `first` on
  auto first = kept_.begin(), end = kept_.end();
  while (end - first > 1) {
    const auto middle = first + (end - first) / 2;
    std::nth_element(first, middle, end, likelier);
    double ahead = 0;
    for (auto one = first; one != middle; ++one) ahead += weight(one->score, largest);
    if (ahead >= wanted) {
      end = middle;
    } else {
      wanted -= ahead;
      first = middle;
    }
  }
  return {first->score, first->token};
}

void Sampler::collect(const float* scores, const RowScorer& measured, Bound bound) {
  kept_.clear();
  for (size_t block = 0; block < block_max_.size(); ++block) {
    if (measured.block_max()[block] < bound.score) continue;
    const size_t end = std::min(weights_.size(), (block + 1) * RowScorer::kBlock);
    for (size_t i = block * RowScorer::kBlock; i < end; ++i) {
      if (scores[i] >= bound.score && std::isfinite(scores[i])) kept_.push_back({scores[i], static_cast<int>(i)});
    }
  }
}

// weights_ of all tokens, 0 for those that are not drawn from; block_sums_ of each block.
void Sampler::weigh(const float* scores, const RowScorer& measured, Bound bound) {
  const size_t count = weights_.size();
  const auto least = static_cast<float>(options_.min_p);
  exp_of_scaled(scores, weights_.data(), count, measured.largest(), scale_);
  for (size_t i = 0; i < count; ++i) {
    const bool drawn = scores[i] >= bound.score && weights_[i] >= least;
    weights_[i] = drawn ? weights_[i] : 0.0f;
  }
  if (bound.token < std::numeric_limits<int>::max()) {  // of equals at the bound only the first ones
    for (size_t i = static_cast<size_t>(bound.token) + 1; i < count; ++i) {
      if (scores[i] == bound.score) weights_[i] = 0;
    }
  }
  for (size_t block = 0; block < block_sums_.size(); ++block) {
    const size_t end = std::min(count, (block + 1) * RowScorer::kBlock);
    double sum = 0;
    for (size_t i = block * RowScorer::kBlock; i < end; ++i) sum += weights_[i];
    block_sums_[block] = sum;
  }
}

// The token on which `where`, from 0 to 1, falls: its block first. `likeliest` where rounding leaves none.
int Sampler::pick(double where, int likeliest) const {
  double left = 0;
  for (double sum : block_sums_) left += sum;
  left *= where;
  size_t block = 0;
  while (block + 1 < block_sums_.size() && left >= block_sums_[block]) left -= block_sums_[block++];
  int chosen = likeliest;
  for (size_t i = block * RowScorer::kBlock; i < weights_.size(); ++i) {
    if (weights_[i] == 0) continue;
    chosen = static_cast<int>(i);
    left -= weights_[i];
    if (left < 0) break;
  }
  return chosen;
}

}  // namespace blip2rt
