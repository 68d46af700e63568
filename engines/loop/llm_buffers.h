// What a run of the language model's graph reads and writes beside its cache, and how all of it is bound by name. Knows
// tensor names; not what rows mean.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "graphs/session.h"
#include "kernels/attention/attention.h"
#include "loop/generator.h"
#include "loop/kv_cache.h"

namespace blip2rt {

// A view of numbers that a vector holds. The vector must keep its memory while the view is used.
template <class T>
Value view_of(std::vector<T>& data, const std::vector<int64_t>& shape, DType dtype) {
  size_t count = 1;
  for (int64_t axis : shape) count *= static_cast<size_t>(axis);
  return view(data.data(), count * sizeof(T), shape, dtype);
}

// Runs the graph `embed` on ids, one after the other, into `embeds` (count, hidden_size).
void embed_tokens(const Generator& generator, std::vector<int64_t>& ids, std::vector<float>& embeds);

// What a row reads of what its encoder said: so many positions from a place on, see CacheRow.
struct EncoderRow {
  int32_t start, length;
};

struct LlmBuffers {
  LlmBuffers(const Generator& generator, size_t max_rows);

  // Binds all inputs and outputs.
  void bind(Binding& binding, KvCache& cache, float* inputs_embeds, int rows, int length);

  // Binds what the encoder said, and its mask (rows, mask_length), as inputs.
  void bind_cross(Binding& binding, KvCache& cross, int rows, int mask_length);

  // Binds keys and values that the encoder is to write.
  void bind_encoder(Binding& binding, KvCache& cross, int rows) const;

  float* logits_of(int row) {
    return logits.data() + static_cast<size_t>(row) * static_cast<size_t>(shape_.vocab_size);
  }

  // Whether the graph reads cache_rows and encoder_rows: rows may then share what was read, and lie anywhere.
  const bool shares, shares_cross;
  std::vector<float> logits;             // (rows, vocab_size)
  std::vector<int64_t> positions;        // (rows, S)
  std::vector<int64_t> last_index;       // (rows)
  std::vector<int32_t> seqlens;          // (rows), valid positions - 1
  std::vector<CacheRow> cache_rows;      // (rows), what each row attends to
  std::vector<EncoderRow> encoder_rows;  // (rows)
  std::vector<int64_t> encoder_mask;     // (rows, length of the encoder's input)
  int32_t total_length = 0;

 private:
  LlmShape shape_;
  std::vector<std::string> cache_names_;  // past_key_0, present_key_0, past_value_0, present_value_0, ...
  std::vector<std::string> cross_names_;  // cross_key_0, cross_value_0, ...
};

}  // namespace blip2rt
