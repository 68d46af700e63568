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
  const float largest = measured.largest();
  if (!std::isfinite(largest)) throw std::runtime_error("the options forbid every token: there is nothing to draw");
  const double where = random.uniform();
  if (options_.top_k == 0 && options_.top_p == 1) return draw_from_all(scores, measured, where);
  keep(scores, measured);
  return draw_from_kept(largest, where);
}

// Block by block first, then within the block where the draw falls.
int Sampler::draw_from_all(const float* scores, const RowScorer& measured, double where) {
  const size_t count = weights_.size();
  exp_of_scaled(scores, weights_.data(), count, measured.largest(), scale_);
  if (options_.min_p > 0) {
    const auto least = static_cast<float>(options_.min_p);
    for (float& weight : weights_) weight = weight < least ? 0.0f : weight;
  }
  double total = 0;
  for (size_t block = 0; block < block_sums_.size(); ++block) {
    const size_t end = std::min(count, (block + 1) * RowScorer::kBlock);
    double sum = 0;
    for (size_t i = block * RowScorer::kBlock; i < end; ++i) sum += weights_[i];
    total += block_sums_[block] = sum;
  }
  double left = where * total;
  size_t block = 0;
  while (block + 1 < block_sums_.size() && left >= block_sums_[block]) left -= block_sums_[block++];
  int chosen = -1;
  for (size_t i = block * RowScorer::kBlock; i < count; ++i) {
    if (weights_[i] == 0) continue;
    chosen = static_cast<int>(i);
    left -= weights_[i];
    if (left < 0) break;
  }
  // Rounding may leave the last blocks without a token of weight: then the most likely one.
  return chosen >= 0 ? chosen : measured.argmax(scores);
}

int Sampler::draw_from_kept(float largest, double where) {
  const auto least = static_cast<float>(options_.min_p);
  double total = 0;
  size_t count = 0;
  for (const Kept& one : kept_) {  // the first one is the most likely, of weight 1
    const float weight_of_one = weight(one.score, largest);
    if (count > 0 && weight_of_one < least) continue;
    weights_[count] = weight_of_one;
    kept_[count++] = one;
    total += weight_of_one;
  }
  double left = where * total;
  size_t i = 0;
  while (i + 1 < count && left >= weights_[i]) left -= weights_[i++];
  return kept_[i].token;
}

// Leaves what top-k and top-p leave, the most likely token first.
void Sampler::keep(const float* scores, const RowScorer& measured) {
  // The k-th largest block maximum: at least k scores are not below it.
  const auto k = static_cast<size_t>(options_.top_k);
  const size_t blocks = block_max_.size(), vocab_size = weights_.size();
  float bound = -std::numeric_limits<float>::infinity();
  if (k > 0 && k <= blocks) {
    block_max_ = measured.block_max();
    const auto kth = block_max_.begin() + static_cast<ptrdiff_t>(k - 1);
    std::nth_element(block_max_.begin(), kth, block_max_.end(), std::greater<>());
    bound = *kth;
  }
  kept_.clear();
  for (size_t block = 0; block < blocks; ++block) {
    if (measured.block_max()[block] < bound) continue;
    const size_t end = std::min(vocab_size, (block + 1) * RowScorer::kBlock);
    for (size_t i = block * RowScorer::kBlock; i < end; ++i) {
      if (scores[i] >= bound && std::isfinite(scores[i])) kept_.push_back({scores[i], static_cast<int>(i)});
    }
  }
  if (k > 0) keep_top_k();
  keep_top_p();
}

// Those not below the k-th largest: of equals all stay.
void Sampler::keep_top_k() {
  const auto k = static_cast<size_t>(options_.top_k);
  if (k >= kept_.size()) return;
  const auto kth = kept_.begin() + static_cast<ptrdiff_t>(k - 1);
  std::nth_element(kept_.begin(), kth, kept_.end(), [](const Kept& a, const Kept& b) { return a.score > b.score; });
  const float threshold = kth->score;
  const auto below = [threshold](const Kept& one) { return one.score < threshold; };
  kept_.erase(std::remove_if(kept_.begin(), kept_.end(), below), kept_.end());
}

// The most likely ones until together they have top_p: sorted a few at a time, as they are usually few.
void Sampler::keep_top_p() {
  const auto likelier = [](const Kept& a, const Kept& b) {
    return a.score > b.score || (a.score == b.score && a.token < b.token);
  };
  float largest = kept_.front().score;
  for (const Kept& one : kept_) largest = std::max(largest, one.score);
  double total = 0;
  for (const Kept& one : kept_) total += weight(one.score, largest);
  double before = 0;  // weight of those ahead
  size_t sorted = 0;
  for (size_t next = 256; sorted < kept_.size(); next *= 4) {
    const size_t end = std::min(next, kept_.size());
    const auto from = kept_.begin() + static_cast<ptrdiff_t>(sorted), to = kept_.begin() + static_cast<ptrdiff_t>(end);
    if (end < kept_.size()) std::nth_element(from, to, kept_.end(), likelier);
    std::sort(from, to, likelier);
    for (; sorted < end; ++sorted) {
      if (sorted > 0 && before >= options_.top_p * total) {
        kept_.resize(sorted);
        return;
      }
      before += weight(kept_[sorted].score, largest);
    }
  }
}

}  // namespace blip2rt
