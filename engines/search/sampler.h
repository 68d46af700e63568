// Samples tokens without replacement from rows of weights, with the meaning of Hugging Face's logits warpers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "search/random.h"

namespace blip2rt {

constexpr int32_t kNoToken = 0x7fffffff;  // larger than any token

constexpr float kForbidden = -std::numeric_limits<float>::infinity();  // the score of a token that must not be chosen

struct Candidate {
  float score;
  int32_t row;
  int32_t token;
};

// Keeps tokens with a larger score, and ties up to `token`.
struct Bound {
  float score = -3.402823466e38f;
  int32_t token = kNoToken;
};

struct SampledRow {
  const float* scores;
  float base;
  double log_weight;  // log of the row's common factor
  double sum;         // sum of the row's weights
};

// Draws tokens from several rows together. Borrows its memory.
struct Sampler {
  static constexpr int32_t kBlock = 64;
  static constexpr int32_t blocks(int32_t vocab_size) { return (vocab_size + kBlock - 1) / kBlock; }

  int32_t vocab_size;
  float scale;         // 1 / temperature
  SampledRow* rows;    // (at most num_beams)
  float* weights;      // (num_beams, V), relative to the row's likeliest token
  double* block_sums;  // (num_beams, ceil(V / kBlock)) of weights

  float* row_weights(int32_t row) const { return weights + static_cast<size_t>(row) * vocab_size; }
  double* row_sums(int32_t row) const { return block_sums + static_cast<size_t>(row) * blocks(vocab_size); }

  // Draws one token of the first `count` rows, with a probability proportional to exp(base + score / temperature), and
  // removes it. The candidate's score is base + score / temperature. Returns false if no token is left.
  bool draw(int32_t count, Random& random, Candidate& drawn) const {
    double most = -std::numeric_limits<double>::infinity();
    for (int32_t row = 0; row < count; ++row) {
      if (rows[row].sum > 0) most = std::max(most, rows[row].log_weight);
    }
    double total = 0;
    for (int32_t row = 0; row < count; ++row) total += share(row, most) * rows[row].sum;
    if (!(total > 0)) return false;

    double left = random.uniform() * total;
    int32_t chosen = 0;
    double left_there = 0;
    for (int32_t row = 0; row < count; ++row) {
      const double factor = share(row, most);
      if (factor == 0) continue;
      chosen = row;
      left_there = left / factor;
      left -= rows[row].sum * factor;
      if (left < 0) break;
    }
    const int32_t token = pick(chosen, left_there);
    SampledRow& row = rows[chosen];
    float* row_weight = row_weights(chosen);
    double* sums = row_sums(chosen);
    row_weight[token] = 0;
    const int32_t first = token - token % kBlock, end = std::min(vocab_size, first + kBlock);
    double sum = 0;
    for (int32_t i = first; i < end; ++i) sum += row_weight[i];
    sums[token / kBlock] = sum;
    row.sum = 0;
    for (int32_t block = 0; block < blocks(vocab_size); ++block) row.sum += sums[block];
    drawn = {row.base + row.scores[token] * scale, chosen, token};
    return true;
  }

 private:
  double share(int32_t row, double most) const { return rows[row].sum > 0 ? std::exp(rows[row].log_weight - most) : 0; }

  // Returns the row's token at `left`, between 0 and the sum of its weights. Finds its block first. If rounding leaves
  // none, returns the last token with a weight.
  int32_t pick(int32_t row, double left) const {
    const double* sums = row_sums(row);
    int32_t block = 0;
    double left_there = left;
    for (int32_t i = 0; i < blocks(vocab_size); ++i) {
      if (sums[i] == 0) continue;
      block = i;
      left_there = left;
      left -= sums[i];
      if (left < 0) break;
    }
    const float* row_weight = row_weights(row);
    const int32_t end = std::min(vocab_size, (block + 1) * kBlock);
    int32_t token = 0;
    for (int32_t i = block * kBlock; i < end; ++i) {
      if (row_weight[i] == 0) continue;
      token = i;
      left_there -= row_weight[i];
      if (left_there < 0) break;
    }
    return token;
  }
};

}  // namespace blip2rt
