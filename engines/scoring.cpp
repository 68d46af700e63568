// Log-softmax and top-k over a vocabulary in two streaming passes, written as plain loops over fixed
// blocks so that any compiler turns them into vector code. Knows numbers only.
#include "scoring.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace blip2rt {
namespace {

constexpr size_t kBlock = 64;
constexpr size_t kLanes = 16;  // independent sums and maxima: the order is ours, not -ffast-math's

float max_of(const float* values, size_t count) {
  float result = -std::numeric_limits<float>::infinity();
  for (size_t i = 0; i < count; ++i) result = values[i] > result ? values[i] : result;
  return result;
}

float block_max(const float* values) {
  float lanes[kLanes];
  std::memcpy(lanes, values, sizeof lanes);
  for (size_t i = kLanes; i < kBlock; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const float value = values[i + lane];
      lanes[lane] = value > lanes[lane] ? value : lanes[lane];
    }
  }
  return max_of(lanes, kLanes);
}

// exp(x) for x <= 0 to 2 ulp, without a call that would stop vectorisation: x = n ln 2 + r with the
// rounding done by adding and subtracting 1.5 * 2^23, then a polynomial in r and 2^n by its bits.
inline float exp_of_nonpositive(float x) {
  constexpr float kRound = 12582912.0f;
  x = x < -87.0f ? -87.0f : x;
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = static_cast<int32_t>((static_cast<uint32_t>(bits) << 23) + 0x3f800000u);
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

double sum_of_exp(const float* values, size_t count, float largest) {
  float lanes[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] += exp_of_nonpositive(values[i + lane] - largest);
  }
  double total = 0;
  for (float lane : lanes) total += lane;
  for (; i < count; ++i) total += exp_of_nonpositive(values[i] - largest);
  return total;
}

}  // namespace

void TopK::offer(const Candidate& candidate) {
  if (!would_take(candidate.score)) return;
  auto place = items_.end();
  while (place != items_.begin() && candidate.score > std::prev(place)->score) --place;
  items_.insert(place, candidate);
  if (items_.size() > capacity_) items_.pop_back();
}

RowScorer::RowScorer(size_t vocab_size) : vocab_size_(vocab_size), block_max_((vocab_size + kBlock - 1) / kBlock) {}

void RowScorer::score(float* logits, float base, int row, const std::vector<int64_t>& forbidden, TopK& best) {
  const size_t whole = vocab_size_ / kBlock;
  const size_t tail = vocab_size_ % kBlock;
  for (size_t block = 0; block < whole; ++block) block_max_[block] = block_max(logits + block * kBlock);
  if (tail != 0) block_max_[whole] = max_of(logits + whole * kBlock, tail);

  const float largest = max_of(block_max_.data(), block_max_.size());
  const float log_sum = static_cast<float>(std::log(sum_of_exp(logits, vocab_size_, largest)));
  if (!std::isfinite(log_sum)) throw std::runtime_error("the language model returned logits that are not finite");

  for (int64_t token : forbidden) logits[token] = -std::numeric_limits<float>::infinity();

  // Rounding is monotonic, so a block whose largest logit scores too low holds nothing better.
  for (size_t block = 0; block < block_max_.size(); ++block) {
    if (!best.would_take(base + (block_max_[block] - largest - log_sum))) continue;
    const size_t end = std::min(vocab_size_, (block + 1) * kBlock);
    for (size_t token = block * kBlock; token < end; ++token) {
      best.offer({base + (logits[token] - largest - log_sum), row, static_cast<int>(token)});
    }
  }
}

}  // namespace blip2rt
