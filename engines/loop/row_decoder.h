// Steps rows of any requests together, each with one new position: answers that go on, and prompts that are read beside
// them. All their keys and values lie in one pool of positions. Knows rows, places and tokens; not whose they are.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "graphs/session.h"
#include "loop/generator.h"
#include "loop/kv_cache.h"
#include "loop/llm_buffers.h"

namespace blip2rt {

// What a row has read, by positions of the pool: see CacheRow. Of an encoder-decoder also what its encoder said.
struct Seen {
  int prompt_start, prompt_length, start, before;
  int cross_start = 0, cross_length = 0;
};

class RowDecoder {
 public:
  // Makes a pool of `positions`, and one for what encoders say where the model has an encoder. Throws where the graphs
  // run without our attention, which alone lets rows lie anywhere; and where a prompt's positions see each other,
  // unless the caller reads every prompt by one run in order. `generator` must outlive the decoder.
  RowDecoder(const Generator& generator, int max_rows, int positions, bool reads_prompts_whole = false);

  // Begins the rows of a run.
  void clear();

  // Adds a row, whose new position is a token, or an embedding (hidden_size). Returns its number.
  int add(int64_t token, const Seen& seen);
  int add(const float* embedding, const Seen& seen);
  int rows() const { return rows_; }

  // Runs the rows. logits() then has a row for each. `in_order`: they are positions of one request that follow each
  // other, of which the last alone is asked for; its logits are row 0.
  void run(bool in_order);

  // Runs an encoder on inputs_embeds [prefix][prompt], and writes what it says to its pool from `start` on.
  void encode(const float* prefix, int prefix_length, const std::vector<int64_t>& prompt, int start);

  float* logits(int row) { return buffers_.logits_of(row); }
  KvCache& cache() { return cache_; }

 private:
  void embed();

  const Generator& generator_;
  const LlmShape shape_;
  const int max_rows_;
  LlmBuffers buffers_;
  KvCache cache_;                    // of one row
  std::unique_ptr<KvCache> cross_;   // of one row
  std::vector<float> embeds_;        // (rows, hidden_size)
  std::vector<float> token_embeds_;  // (tokens, hidden_size)
  std::vector<int64_t> tokens_;      // of those rows that have one
  std::vector<int> token_rows_;      // which rows these are
  int rows_ = 0, mask_length_ = 0;
  struct Bound {
    int rows, length, mask_length;
    bool operator==(const Bound& o) const {
      return rows == o.rows && length == o.length && mask_length == o.mask_length;
    }
  } bound_ = {0, 0, 0};
  std::optional<Binding> llm_;
};

}  // namespace blip2rt
