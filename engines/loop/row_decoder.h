// A decoder for engines whose graph reads a cache of its own for each row, and returns the keys and values of the new
// positions: TensorRT. Caches stay in the engine's memory; only small inputs and the logits pass between it and the
// host.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "loop/decoder.h"

namespace blip2rt {

class RowDecoder final : public Decoder {
 public:
  // As many rows and positions as the engine was built for. Position p of row r is r * capacity + p of the cache.
  explicit RowDecoder(const Generator& generator);

  // One after the other, each into the row that its context starts with.
  void encode(const std::vector<PromptSpan>& spans) override;
  void read(const std::vector<PromptSpan>& spans, int first) override;

  void clear() override { added_.clear(); }
  int add(int64_t token, const Context& context, bool scored) override;
  int add(const float* embedding, const Context& context, bool scored) override;
  int rows() const override { return static_cast<int>(added_.size()); }
  void step() override;
  float* logits(int row) override;
  KvCache& cache() override { return cache_; }
  void share(int from, int to, int count) override;
  void forget(int start, int rows) noexcept override;

  bool failed() const { return failed_; }  // a run has failed: the engine's memory is in an unknown state

 private:
  // A row of the next step: its cache, and the position that it computes.
  struct Row {
    int row, position;
    int64_t token;
  };

  // Inputs of the language model for `rows` x `length` positions, besides the caches.
  struct Inputs {
    std::vector<float> embeds;          // (rows, length, hidden_size)
    std::vector<int64_t> position_ids;  // (rows, length)
    std::vector<int64_t> last_index;    // (rows)
    std::vector<float> past_mask;       // (rows, capacity), added to the scores of the cache
    std::vector<int64_t> encoder_mask;  // (rows, capacity)
  };

  Memory& memory() const;
  Inputs inputs_for(int rows, int length) const;
  void set_row(Inputs& inputs, int index, int length, int past, int encoder_length) const;
  std::unique_ptr<Binding> bind(Inputs& inputs, int first_row, int rows, int length, float* logits) const;
  static size_t fresh_stride(const KvCache& cache, int rows, int length);
  void run(Binding& binding);
  void append(int rows);

  using DeviceBuffer = std::unique_ptr<void, std::function<void(void*)>>;

  const RowShape rows_;
  KvCache cache_;
  std::unique_ptr<KvCache> cross_;               // of each row's encoder output
  std::vector<int> encoder_lengths_;             // by row of the caches
  std::vector<std::string> names_;               // past_key_0, new_key_0, cross_key_0, past_value_0, ...
  DeviceBuffer fresh_, fresh_cross_;             // keys and values that a run of llm, and of the encoder, returns
  Inputs inputs_;                                // of step()
  std::vector<float> embeds_;                    // of step()
  std::vector<std::unique_ptr<Binding>> steps_;  // by number of rows
  std::vector<float> logits_;                    // (rows, vocab_size), of prompts in their order, or of rows
  std::vector<Row> added_;
  bool prompts_read_ = false;  // by the last run
  bool failed_ = false;
};

}  // namespace blip2rt
