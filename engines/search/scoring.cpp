// Computes log-softmax and top-k over a vocabulary in streaming passes: plain loops over fixed blocks, which every
// compiler vectorises.
#include "search/scoring.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

// Compiles the same code for wider registers too; the loader chooses one. Lanes and order are fixed and nothing is
// contracted, so every variant gives the same bits.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GLIBC__) && !defined(BLIP2RT_SANITIZE)
#define BLIP2RT_WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define BLIP2RT_WIDE
#endif
#define BLIP2RT_INLINE inline __attribute__((always_inline))

namespace blip2rt {
namespace {

constexpr size_t kBlock = RowScorer::kBlock;
constexpr size_t kLanes = 16;  // independent sums and maxima in a fixed order, unlike with -ffast-math
constexpr float kLowest = -std::numeric_limits<float>::infinity();

// 2^y = 2^n 2^f, |f| <= 1/2. Adding 1.5 * 2^23 rounds y to n, and adding 127 more leaves the exponent bits of 2^n in
// the lowest bits; 2^f is the minimax polynomial that is exactly 1 at 0. NaN stays NaN.
BLIP2RT_INLINE float fast_exp(float x) {
  constexpr float kRound = 12582912.0f + 127.0f;
  const float scaled = x * 1.44269504f;  // log2(e)
  const float y = scaled < -126.0f ? -126.0f : scaled;
  const float shifted = y + kRound;
  const float f = y - (shifted - kRound);
  float p = 1.32647273e-3f;
  p = p * f + 9.67151299e-3f;
  p = p * f + 5.55073358e-2f;
  p = p * f + 2.40222424e-1f;
  p = p * f + 6.93147004e-1f;
  p = p * f + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits <<= 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

BLIP2RT_INLINE float larger(float a, float b) { return a > b ? a : b; }

BLIP2RT_INLINE float max_of(const float* values, size_t count) {
  float result = kLowest;
  for (size_t i = 0; i < count; ++i) result = larger(values[i], result);
  return result;
}

// Writes the maximum of each whole block, four values at a time: GCC does not vectorise a plain loop over the block.
BLIP2RT_WIDE void block_maxima(const float* values, size_t blocks, float* maxima) {
  static_assert(kBlock == 4 * kLanes, "four values a lane");
  for (size_t block = 0; block < blocks; ++block, values += kBlock) {
    float lanes[kLanes];
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const float* value = values + lane;
      lanes[lane] = larger(larger(value[0], value[kLanes]), larger(value[2 * kLanes], value[3 * kLanes]));
    }
    for (size_t half = kLanes / 2; half > 0; half /= 2) {
      for (size_t lane = 0; lane < half; ++lane) lanes[lane] = larger(lanes[lane], lanes[lane + half]);
    }
    maxima[block] = lanes[0];
  }
}

// Returns the sum of exp(value - largest); NaN if a value is NaN.
BLIP2RT_WIDE double sum_of_exp(const float* values, size_t count, float largest) {
  float lanes[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] += fast_exp(values[i + lane] - largest);
  }
  double total = 0;
  for (float lane : lanes) total += lane;
  for (; i < count; ++i) total += fast_exp(values[i] - largest);
  return total;
}

BLIP2RT_WIDE void subtract(float* values, size_t count, float first, float second) {
  for (size_t i = 0; i < count; ++i) values[i] = values[i] - first - second;
}

}  // namespace

BLIP2RT_WIDE double weigh(const float* scores, float* weights, size_t count, float largest, float scale, float least) {
  float lanes[kLanes] = {};
  const size_t whole = count - count % kLanes;
  for (size_t i = 0; i < whole; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const float weight = fast_exp((scores[i + lane] - largest) * scale);
      weights[i + lane] = scores[i + lane] >= least ? weight : 0.0f;
      lanes[lane] += weights[i + lane];
    }
  }
  double total = 0;
  for (float lane : lanes) total += lane;
  for (size_t i = whole; i < count; ++i) {
    weights[i] = scores[i] >= least ? fast_exp((scores[i] - largest) * scale) : 0.0f;
    total += weights[i];
  }
  return total;
}

RowScorer::RowScorer(size_t vocab_size) : vocab_size_(vocab_size), block_max_((vocab_size + kBlock - 1) / kBlock) {}

void RowScorer::find_block_max(const float* scores) {
  const size_t whole = vocab_size_ / kBlock, tail = vocab_size_ % kBlock;
  block_maxima(scores, whole, block_max_.data());
  if (tail != 0) block_max_[whole] = max_of(scores + whole * kBlock, tail);
}

void RowScorer::measure(const float* scores) {
  find_block_max(scores);
  largest_ = max_of(block_max_.data(), block_max_.size());
  log_sum_ = static_cast<float>(std::log(sum_of_exp(scores, vocab_size_, largest_)));
  if (std::isfinite(log_sum_)) return;
  const bool all_forbidden = std::all_of(scores, scores + vocab_size_, [](float score) { return score == kLowest; });
  if (!all_forbidden) throw std::runtime_error("the language model returned logits that are not finite");
}

int RowScorer::argmax(const float* scores) const {
  const auto block = std::find(block_max_.begin(), block_max_.end(), largest_) - block_max_.begin();
  const float* start = scores + static_cast<size_t>(block) * kBlock;
  return static_cast<int>(std::find(start, scores + vocab_size_, largest_) - scores);
}

void RowScorer::normalise(float* scores) {
  subtract(scores, vocab_size_, largest_, log_sum_);
  largest_ = log_sum_ = 0;
}

void RowScorer::offer(const float* scores, float base, int row, SearchBlock& best) const {
  // Rounding is monotonic, so a block whose largest score is too low has nothing better.
  for (size_t block = 0; block < block_max_.size(); ++block) {
    if (!best.accepts(base + (block_max_[block] - largest_ - log_sum_))) continue;
    const size_t end = std::min(vocab_size_, (block + 1) * kBlock);
    for (size_t token = block * kBlock; token < end; ++token) {
      best.offer({base + (scores[token] - largest_ - log_sum_), row, static_cast<int>(token)});
    }
  }
}

}  // namespace blip2rt
