// Steps the language model: owns the buffers of one generate call and binds them to the `embed` and `llm`
// graphs, so that a step only rewrites numbers in place. Knows rows of tokens; not beams or scores.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "generator.h"
#include "kv_cache.h"
#include "session.h"

namespace blip2rt {

class Decoder {
 public:
  Decoder(const Session& embed, const Session& llm, const LlmShape& shape, int max_rows, int capacity);

  // Reads [prefix][prompt] into row i of the cache, for each image i. logits() then has one row an image.
  void prefill(const Prefix& prefix, const std::vector<std::vector<int64_t>>& prompts);

  // Rows of the steps that follow. Binding allocates; call it when the number changes, not every step.
  void set_rows(int rows);

  // Feeds token(row) at position(row) and updates logits() (rows, vocab_size).
  void step();
  int64_t& token(int row) { return tokens_[static_cast<size_t>(row)]; }
  void set_position(int row, int position);

  float* logits(int row) { return logits_.data() + static_cast<size_t>(row) * static_cast<size_t>(shape_.vocab_size); }
  KvCache& cache() { return cache_; }

 private:
  std::vector<float> embed_prompts(const std::vector<std::vector<int64_t>>& prompts);
  void bind_llm(Binding& binding, float* inputs_embeds, int rows, int length);

  const Session& embed_;
  const Session& llm_;
  LlmShape shape_;
  KvCache cache_;
  std::vector<std::string> cache_names_;  // past_key_0, present_key_0, past_value_0, present_value_0, ...
  std::vector<float> step_embeds_;        // (rows, 1, hidden_size)
  std::vector<float> logits_;             // (rows, vocab_size)
  std::vector<int64_t> tokens_;           // (rows, 1)
  std::vector<int64_t> positions_;        // (rows, S)
  std::vector<int64_t> last_index_;       // (rows)
  std::vector<int32_t> seqlens_;          // (rows), valid positions - 1
  int32_t total_length_ = 0;
  std::optional<Binding> embed_step_;
  std::optional<Binding> llm_step_;
};

}  // namespace blip2rt
