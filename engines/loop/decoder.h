// Runs the language model's graphs for rows of any requests. There are two kinds of runs: read() takes several
// positions of each prompt and computes logits for the last ones, step() takes one position a row and computes logits
// for those that are asked for. Does not know which request a row belongs to.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "graphs/session.h"
#include "kernels/attention/attention.h"
#include "loop/generator.h"
#include "loop/kv_cache.h"

namespace blip2rt {

struct DecoderSizes {
  int rows;       // of a run, at most
  int logits;     // of these, rows that need logits, at most
  int positions;  // of the pool
  // The pool for the encoder's keys and values. An encoder run that fills it writes to it directly.
  int encoder_rows = 1;
  int encoder_positions = 0;
};

// What a new position attends to, by positions of the pools: see CacheRow.
struct Context {
  int prompt_start, prompt_length, start, before;
  int encoder_start = 0, encoder_length = 0;
};

// Positions to read: embeddings (embed_count, hidden_size), then tokens. Borrows both.
struct PromptSpan {
  const float* embeds;
  int embed_count;
  const int64_t* tokens;
  int token_count;
  Context context;  // of the first position

  int length() const { return embed_count + token_count; }
};

class Decoder {
 public:
  virtual ~Decoder() = default;
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  // Runs the encoder on each span, and writes keys and values to its pool at encoder_start.
  virtual void encode(const std::vector<PromptSpan>& spans) = 0;

  // Reads all spans. Row `first` + i of the logits belongs to the last position of span i.
  virtual void read(const std::vector<PromptSpan>& spans, int first = 0) = 0;

  // Removes the rows of the step before.
  virtual void clear() = 0;

  // Adds a row to the next step: a token, or an embedding (hidden_size). `scored`: it needs logits. Returns its number.
  virtual int add(int64_t token, const Context& context, bool scored) = 0;
  virtual int add(const float* embedding, const Context& context, bool scored) = 0;
  virtual int rows() const = 0;

  // Runs the rows that were added. Allocates nothing on our side as long as their numbers stay the same.
  virtual void step() = 0;

  // Of a row that needed them.
  virtual float* logits(int row) = 0;

  virtual KvCache& cache() = 0;

  // Gives the row that begins at `to` what the one that begins at `from` has read, where rows share nothing.
  virtual void share(int from, int to, int count) = 0;

  // Forgets what rows hold, since numbers that are not finite would reach later rows there through masks.
  virtual void forget(int start, int rows) noexcept = 0;

  double graph_seconds() const { return graph_seconds_; }  // spent in the graphs by all steps, not by read()

 protected:
  // `generator` must outlive the decoder.
  explicit Decoder(const Generator& generator) : generator_(generator), shape_(generator.shape()) {}

  // Looks up the embeddings (ids, hidden_size) of tokens.
  void embed_tokens(std::vector<int64_t>& ids, std::vector<float>& embeds) const;

  // Returns the spans' embeddings (spans, length, hidden_size), padded with 0.
  std::vector<float> embed_padded(const std::vector<PromptSpan>& spans, int length) const;

  const Generator& generator_;
  const LlmShape shape_;
  double graph_seconds_ = 0;
};

// A decoder whose rows share one pool of positions, by the core's attention. read() takes all spans in one run: shorter
// ones are padded to the longest, and their contexts need room for as many positions, whose content is then undefined.
class PoolDecoder final : public Decoder {
 public:
  PoolDecoder(const Generator& generator, const DecoderSizes& sizes);

  void encode(const std::vector<PromptSpan>& spans) override;
  void read(const std::vector<PromptSpan>& spans, int first) override;
  void clear() override;
  int add(int64_t token, const Context& context, bool scored) override;
  int add(const float* embedding, const Context& context, bool scored) override;
  int rows() const override { return rows_; }
  void step() override;
  float* logits(int row) override {
    return logits_.data() + logits_of_[static_cast<size_t>(row)] * static_cast<size_t>(shape_.vocab_size);
  }
  KvCache& cache() override { return cache_; }
  void share(int, int, int) override {}       // rows of a prompt read its single copy
  void forget(int, int) noexcept override {}  // what a row does not see is not read

 private:
  // What a row reads of the encoder's output: `length` positions from a place on, see CacheRow.
  struct EncoderRow {
    int32_t start, length;
  };

  // Inputs of the language model for `rows` x `length` positions, besides the caches.
  struct Inputs {
    Inputs(size_t rows, size_t length, size_t width);
    std::vector<float> embeds;             // (rows, length, hidden_size), 0 behind a row's end
    std::vector<int64_t> position_ids;     // (rows, length)
    std::vector<int64_t> last_index;       // (rows)
    std::vector<int32_t> seqlens;          // (rows), valid positions - 1
    std::vector<CacheRow> cache_rows;      // (rows)
    std::vector<EncoderRow> encoder_rows;  // (rows)
    std::vector<int32_t> logit_rows;       // rows that need logits
    std::vector<int64_t> encoder_mask;     // (rows, longest encoder_length), all 1: rows read exactly their own
    int32_t total_length = 0;
    int encoder_length = 0;
  };

  void set_row(Inputs& inputs, size_t row, const Context& context, int length, int padded_length);
  void score_row(Inputs& inputs, int row);
  void bind(Binding& binding, Inputs& inputs, int rows, int length);
  void embed_rows();

  const int max_rows_;
  const bool selects_logits_;               // otherwise the graph computes those of all rows
  std::vector<std::string> cache_names_;    // past_key_0, present_key_0, past_value_0, present_value_0, ...
  std::vector<std::string> encoder_names_;  // cross_key_0, cross_value_0, ...
  std::vector<float> logits_;               // (rows that need them, vocab_size)
  std::vector<size_t> logits_of_;           // by row: the place of its logits
  KvCache cache_;                           // of one row
  std::unique_ptr<KvCache> encoder_cache_;
  Inputs inputs_;                // of step()
  std::vector<int64_t> tokens_;  // of the rows that have one
  std::vector<int> token_rows_;  // which rows these are
  int rows_ = 0;
  int bound_rows_ = 0, bound_encoder_length_ = 0, embed_bound_rows_ = 0;
  size_t bound_logits_ = 0;
  std::unique_ptr<Binding> llm_, embed_;  // of step()
};

}  // namespace blip2rt
