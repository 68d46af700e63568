// Sampling. Knows scores only.
#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

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
    : options_(options),
      vocab_size_(vocab_size),
      blocks_((vocab_size + RowScorer::kBlock - 1) / RowScorer::kBlock),
      fewest_(options.num_beams == 1 ? 1 : std::max<size_t>(2, 1 + options.eos_token_ids.size())),
      scale_(static_cast<float>(1.0 / options.temperature)) {
  if (!options.do_sample) return;
  const auto rows = static_cast<size_t>(options.num_beams);
  rows_.reserve(rows);
  weights_.resize(rows * vocab_size);
  block_sums_.resize(rows * blocks_);
  block_max_.resize(blocks_);
  kept_.reserve(vocab_size);
}

void Sampler::add(const float* scores, const RowScorer& measured, float base) {
  rows_.push_back({scores, base, 0, 0});
  if (!std::isfinite(measured.largest())) return;  // every token is forbidden
  Bound bound;
  if (options_.top_k > 0) bound = largest(std::max(static_cast<size_t>(options_.top_k), fewest_), scores, measured);
  if (options_.top_p < 1) bound = top_p(scores, measured, bound);
  if (options_.min_p > 0) {
    const Bound other = min_p(scores, measured);
    if (other.score > bound.score) bound = other;
  }
  Row& row = rows_.back();
  row.log_weight = static_cast<double>(base) + static_cast<double>(measured.largest()) * scale_;
  if (!std::isfinite(row.log_weight)) return;  // a beam of no probability
  row.sum = weigh_row(scores, measured, bound);
}

std::optional<Candidate> Sampler::draw(Random& random) {
  double most = -std::numeric_limits<double>::infinity();
  for (const Row& row : rows_) most = row.sum > 0 ? std::max(most, row.log_weight) : most;
  double total = 0;
  for (const Row& row : rows_) total += row.sum > 0 ? row.sum * std::exp(row.log_weight - most) : 0;
  if (total == 0) return std::nullopt;

  double left = random.uniform() * total;
  size_t chosen = 0;
  double left_there = 0;
  for (size_t row = 0; row < rows_.size(); ++row) {
    const double factor = rows_[row].sum > 0 ? std::exp(rows_[row].log_weight - most) : 0;
    if (factor == 0) continue;
    chosen = row;
    left_there = left / factor;
    left -= rows_[row].sum * factor;
    if (left < 0) break;
  }
  const size_t token = pick(chosen, left_there);
  Row& row = rows_[chosen];

  weights(chosen)[token] = 0;
  const size_t first = token - token % RowScorer::kBlock, end = std::min(vocab_size_, first + RowScorer::kBlock);
  block_sums(chosen)[token / RowScorer::kBlock] = std::accumulate(weights(chosen) + first, weights(chosen) + end, 0.0);
  row.sum = std::accumulate(block_sums(chosen), block_sums(chosen) + blocks_, 0.0);
  return Candidate{row.base + row.scores[token] * scale_, static_cast<int>(chosen), static_cast<int>(token)};
}

// Of the row's tokens with a weight that on which `left`, from 0 to their sum, falls: its block first. Where rounding
// leaves none, the last.
size_t Sampler::pick(size_t row, double left) const {
  size_t block = 0;
  double left_there = left;
  for (size_t i = 0; i < blocks_; ++i) {
    const double sum = block_sums(row)[i];
    if (sum == 0) continue;
    block = i;
    left_there = left;
    left -= sum;
    if (left < 0) break;
  }
  const size_t end = std::min(vocab_size_, (block + 1) * RowScorer::kBlock);
  size_t token = 0;
  for (size_t i = block * RowScorer::kBlock; i < end; ++i) {
    if (weights(row)[i] == 0) continue;
    token = i;
    left_there -= weights(row)[i];
    if (left_there < 0) break;
  }
  return token;
}

// The bound of the `count` largest scores: of equals all stay.
Sampler::Bound Sampler::largest(size_t count, const float* scores, const RowScorer& measured) {
  Bound bound;
  if (count > vocab_size_) return bound;
  if (count <= blocks_) {  // at least so many scores are not below the count-th largest maximum of a block
    block_max_ = measured.block_max();
    const auto last = block_max_.begin() + static_cast<ptrdiff_t>(count - 1);
    std::nth_element(block_max_.begin(), last, block_max_.end(), std::greater<>());
    bound.score = std::max(bound.score, *last);
  }
  collect(scores, measured, bound.score);
  if (count > kept_.size()) return Bound();
  const auto last = kept_.begin() + static_cast<ptrdiff_t>(count - 1);
  std::nth_element(kept_.begin(), last, kept_.end(), likelier);
  return {last->score, std::numeric_limits<int>::max()};
}

// The token with which the likeliest ones together have top_p of what `within` leaves: found by halves.
Sampler::Bound Sampler::top_p(const float* scores, const RowScorer& measured, Bound within) {
  const size_t row = rows_.size() - 1;
  const double total = weigh_row(scores, measured, within);
  // So light are tokens that even all of them together are too few to reach: they need not be looked at.
  const double light = (1 - options_.top_p) * total / (2 * static_cast<double>(vocab_size_));
  const auto least = static_cast<float>(measured.largest() + std::log(light) / scale_);
  collect(scores, measured, std::max(within.score, least));
  double wanted = options_.top_p * total;  // by those from `first` on
  auto first = kept_.begin(), end = kept_.end();
  while (end - first > 1) {
    const auto middle = first + (end - first) / 2;
    std::nth_element(first, middle, end, likelier);
    double ahead = 0;
    for (auto one = first; one != middle; ++one) ahead += weights(row)[one->token];
    if (ahead >= wanted) {
      end = middle;
    } else {
      wanted -= ahead;
      first = middle;
    }
  }
  const Bound bound{first->score, first->token};
  if (fewest_ == 1 || static_cast<size_t>(first - kept_.begin()) + 1 >= fewest_) return bound;
  return largest(fewest_, scores, measured);
}

Sampler::Bound Sampler::min_p(const float* scores, const RowScorer& measured) {
  Bound bound;
  bound.score = static_cast<float>(measured.largest() + std::log(options_.min_p) / scale_);
  if (fewest_ > 1) bound.score = std::min(bound.score, largest(fewest_, scores, measured).score);
  return bound;
}

// kept_: the tokens of a score from `least` on.
void Sampler::collect(const float* scores, const RowScorer& measured, float least) {
  kept_.clear();
  for (size_t block = 0; block < blocks_; ++block) {
    if (measured.block_max()[block] < least) continue;
    const size_t end = std::min(vocab_size_, (block + 1) * RowScorer::kBlock);
    for (size_t i = block * RowScorer::kBlock; i < end; ++i) {
      if (scores[i] >= least) kept_.push_back({scores[i], static_cast<int>(i)});
    }
  }
}

// Weights and sums of the last row; gives the sum of all.
double Sampler::weigh_row(const float* scores, const RowScorer& measured, Bound bound) {
  float* row_weights = weights(rows_.size() - 1);
  double* sums = block_sums(rows_.size() - 1);
  double total = 0;
  for (size_t block = 0; block < blocks_; ++block) {
    sums[block] = 0;
    if (measured.block_max()[block] < bound.score) continue;
    const size_t first = block * RowScorer::kBlock, end = std::min(vocab_size_, first + RowScorer::kBlock);
    sums[block] = weigh(scores + first, row_weights + first, end - first, measured.largest(), scale_, bound.score);
    if (static_cast<int>(end) > bound.token) {  // of equals at the bound only the first ones
      for (size_t i = first; i < end; ++i) {
        if (scores[i] == bound.score && static_cast<int>(i) > bound.token) row_weights[i] = 0;
      }
      sums[block] = std::accumulate(row_weights + first, row_weights + end, 0.0);
    }
    total += sums[block];
  }
  return total;
}

}  // namespace blip2rt
