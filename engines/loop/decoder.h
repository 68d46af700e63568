// Steps the language model. Owns the buffers of one generation and binds them to the graphs: a step only rewrites
// numbers in place. Knows rows of tokens; not beams or scores.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "graphs/session.h"
#include "loop/generator.h"
#include "loop/kv_cache.h"
#include "loop/llm_buffers.h"

namespace blip2rt {

class Decoder {
 public:
  // `generator` must outlive the decoder.
  Decoder(const Generator& generator, int max_rows, int capacity);

  // Marks the decoder as used by a thread while it lives. Throws where another thread uses it.
  class InUse {
   public:
    explicit InUse(Decoder& decoder);
    ~InUse() { decoder_.in_use_.clear(std::memory_order_release); }
    InUse(const InUse&) = delete;
    InUse& operator=(const InUse&) = delete;

   private:
    Decoder& decoder_;
  };

  // Runs [prefix][prompt] of each row through the encoder. For an encoder-decoder, before `read`.
  void encode(const Prefix& prefix, const Prompts& prompts);

  // Reads [prefix][prompt i] into row i of the cache, behind the `past` positions that are there. Only a single row may
  // have a past. logits() then has a row for each prompt.
  void read(const Prefix& prefix, const Prompts& prompts, int past = 0);

  // Sets the rows of the steps that follow. Binding allocates: call it when the number changes, not every step.
  void set_rows(int rows);

  // Feeds token(row) behind what the row has read and answered, and updates logits() (rows, vocab_size).
  void step();
  int64_t& token(int row) { return tokens_[static_cast<size_t>(row)]; }
  void set_answered(int row, int answered);  // positions behind what the row read

  // Makes row `to` a copy of row `from`: what it read, `answered` positions behind that, and what the encoder said, but
  // not the logits. Copies what was read only where the graph cannot share it.
  void copy_row(int from, int to, int answered);

  // Copies the answer alone, between rows that have read the same.
  void copy_answer(int from, int to, int answered);

  double graph_seconds() const { return graph_seconds_; }  // spent within the graphs by all steps, not by read

  float* logits(int row) { return buffers_.logits_of(row); }
  void copy_logits(int from, int to);
  const KvCache& cache() const { return cache_; }

 private:
  struct Embeds {
    std::vector<float> data;   // (rows, length, hidden_size), 0 after a row's end
    std::vector<int> lengths;  // (rows)
    int rows, length;
  };

  Embeds embed(const Prefix& prefix, const Prompts& prompts) const;
  void bind_llm(Binding& binding, float* inputs_embeds, int rows, int length);
  int answer_start(int row) const;

  const Generator& generator_;
  LlmShape shape_;
  LlmBuffers buffers_;
  KvCache cache_;
  std::unique_ptr<KvCache> cross_;  // of an encoder-decoder: keys and values that the encoder made
  int encoder_length_ = 0;
  int answer_start_ = 0;            // where answers begin in a row, behind the longest prompt
  std::vector<float> step_embeds_;  // (rows, 1, hidden_size)
  std::vector<int64_t> tokens_;     // (rows, 1)
  int rows_ = 0;
  double graph_seconds_ = 0;
  std::atomic_flag in_use_ = ATOMIC_FLAG_INIT;
  std::optional<Binding> embed_step_;
  std::optional<Binding> llm_step_;
};

}  // namespace blip2rt
