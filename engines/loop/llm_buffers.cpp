// Binds buffers to the graph of the language model. Knows tensor names.
#include "loop/llm_buffers.h"

#include "ops/attention_op.h"

namespace blip2rt {

void embed_tokens(const Generator& generator, std::vector<int64_t>& ids, std::vector<float>& embeds) {
  const int width = generator.shape().hidden_size;
  embeds.resize(ids.size() * static_cast<size_t>(width));
  if (ids.empty()) return;
  const auto count = static_cast<int64_t>(ids.size());
  Binding binding(generator.embed());
  binding.input("token_ids", view_of(ids, {1, count}, DType::kInt64));
  binding.output("token_embeds", view_of(embeds, {1, count, width}, DType::kFloat32));
  binding.run();
}

LlmBuffers::LlmBuffers(const Generator& generator, size_t max_rows)
    : shares(generator.llm().find_input(kCacheRows) != nullptr),
      shares_cross(generator.llm().find_input(kEncoderRows) != nullptr),
      logits(max_rows * static_cast<size_t>(generator.shape().vocab_size)),
      last_index(max_rows),
      seqlens(max_rows),
      cache_rows(max_rows),
      shape_(generator.shape()) {
  for (int layer = 0; layer < shape_.layers; ++layer) {
    for (const char* part : {"key_", "value_"}) {
      for (const char* time : {"past_", "present_"}) cache_names_.push_back(time + (part + std::to_string(layer)));
      cross_names_.push_back("cross_" + (part + std::to_string(layer)));
    }
  }
}

void LlmBuffers::bind(Binding& binding, KvCache& cache, float* inputs_embeds, int rows, int length) {
  binding.input("inputs_embeds", view(inputs_embeds, {rows, length, shape_.hidden_size}));
  binding.input("position_ids", view_of(positions, {rows, length}, DType::kInt64));
  binding.input("last_index", view_of(last_index, {rows}, DType::kInt64));
  binding.input("seqlens_k", view_of(seqlens, {rows}, DType::kInt32));
  binding.input("total_sequence_length", view(&total_length, sizeof total_length, {}, DType::kInt32));
  binding.output("logits", view_of(logits, {rows, shape_.vocab_size}, DType::kFloat32));
  if (shares) {
    const size_t bytes = static_cast<size_t>(rows) * sizeof(CacheRow);
    binding.input(kCacheRows, view(cache_rows.data(), bytes, {rows, 4}, DType::kInt32));
  }
  for (int i = 0; i < shape_.layers * 2; ++i) {
    const Value buffer = cache.tensor(i / 2, i % 2, rows);
    binding.input(cache_names_[static_cast<size_t>(i) * 2].c_str(), buffer);
    binding.output(cache_names_[static_cast<size_t>(i) * 2 + 1].c_str(), buffer);
  }
}

void LlmBuffers::bind_cross(Binding& binding, KvCache& cross, int rows, int mask_length) {
  for (int i = 0; i < shape_.layers * 2; ++i) {
    binding.input(cross_names_[static_cast<size_t>(i)].c_str(), cross.tensor(i / 2, i % 2, rows));
  }
  binding.input("encoder_mask", view_of(encoder_mask, {rows, mask_length}, DType::kInt64));
  if (!shares_cross) return;
  const size_t bytes = static_cast<size_t>(rows) * sizeof(EncoderRow);
  binding.input(kEncoderRows, view(encoder_rows.data(), bytes, {rows, 2}, DType::kInt32));
}

void LlmBuffers::bind_encoder(Binding& binding, KvCache& cross, int rows) const {
  for (int i = 0; i < shape_.layers * 2; ++i) {
    binding.output(cross_names_[static_cast<size_t>(i)].c_str(), cross.tensor(i / 2, i % 2, rows));
  }
}

}  // namespace blip2rt
