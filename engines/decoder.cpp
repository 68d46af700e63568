// Binds buffers to the `embed` and `llm` graphs and runs them. Knows rows of tokens; not beams or scores.
#include "decoder.h"

#include <algorithm>

namespace blip2rt {
namespace {

template <class T>
Value view_of(std::vector<T>& data, const std::vector<int64_t>& shape, DType dtype) {
  size_t count = 1;
  for (int64_t axis : shape) count *= static_cast<size_t>(axis);
  return view(data.data(), count * sizeof(T), shape, dtype);
}

}  // namespace

Decoder::Decoder(const Session& embed, const Session& llm, const LlmShape& shape, int max_rows, int capacity)
    : embed_(embed),
      llm_(llm),
      shape_(shape),
      cache_({shape.layers, max_rows, shape.kv_heads, capacity, shape.head_dim}) {
  const auto rows = static_cast<size_t>(max_rows);
  step_embeds_.resize(rows * static_cast<size_t>(shape.hidden_size));
  logits_.resize(rows * static_cast<size_t>(shape.vocab_size));
  tokens_.resize(rows);
  last_index_.resize(rows);
  seqlens_.resize(rows);
  for (int layer = 0; layer < shape.layers; ++layer) {
    for (const char* part : {"key_", "value_"}) {
      for (const char* time : {"past_", "present_"}) cache_names_.push_back(time + (part + std::to_string(layer)));
    }
  }
}

void Decoder::bind_llm(Binding& binding, float* inputs_embeds, int rows, int length) {
  binding.input("inputs_embeds", view(inputs_embeds, {rows, length, shape_.hidden_size}));
  binding.input("position_ids", view_of(positions_, {rows, length}, DType::kInt64));
  binding.input("last_index", view_of(last_index_, {rows}, DType::kInt64));
  binding.input("seqlens_k", view_of(seqlens_, {rows}, DType::kInt32));
  binding.input("total_sequence_length", view(&total_length_, sizeof total_length_, {}, DType::kInt32));
  binding.output("logits", view_of(logits_, {rows, shape_.vocab_size}, DType::kFloat32));
  for (int i = 0; i < shape_.layers * 2; ++i) {
    const Value buffer = cache_.tensor(i / 2, i % 2, rows);
    binding.input(cache_names_[static_cast<size_t>(i) * 2].c_str(), buffer);
    binding.output(cache_names_[static_cast<size_t>(i) * 2 + 1].c_str(), buffer);
  }
}

std::vector<float> Decoder::embed_prompts(const std::vector<std::vector<int64_t>>& prompts) {
  std::vector<int64_t> ids;
  for (const auto& prompt : prompts) ids.insert(ids.end(), prompt.begin(), prompt.end());
  std::vector<float> embeds(ids.size() * static_cast<size_t>(shape_.hidden_size));
  if (ids.empty()) return embeds;
  const auto count = static_cast<int64_t>(ids.size());
  Binding binding(embed_);
  binding.input("token_ids", view_of(ids, {1, count}, DType::kInt64));
  binding.output("token_embeds", view_of(embeds, {1, count, shape_.hidden_size}, DType::kFloat32));
  binding.run();
  return embeds;
}

void Decoder::prefill(const Prefix& prefix, const std::vector<std::vector<int64_t>>& prompts) {
  size_t longest = 0;
  for (const auto& prompt : prompts) longest = std::max(longest, prompt.size());
  const int length = prefix.length + static_cast<int>(longest);
  const auto width = static_cast<size_t>(shape_.hidden_size);
  const auto row_size = static_cast<size_t>(length) * width;
  const auto prefix_size = static_cast<size_t>(prefix.length) * width;

  std::vector<float> embeds(prompts.size() * row_size);  // padding stays 0
  const std::vector<float> prompt_embeds = embed_prompts(prompts);
  const float* next_prompt = prompt_embeds.data();
  positions_.resize(prompts.size() * static_cast<size_t>(length));
  for (size_t i = 0; i < prompts.size(); ++i) {
    float* row = embeds.data() + i * row_size;
    const size_t prompt_size = prompts[i].size() * width;
    std::copy_n(prefix.data + i * prefix_size, prefix_size, row);
    std::copy_n(next_prompt, prompt_size, row + prefix_size);
    next_prompt += prompt_size;
    for (int p = 0; p < length; ++p) positions_[i * static_cast<size_t>(length) + static_cast<size_t>(p)] = p;
    seqlens_[i] = prefix.length + static_cast<int>(prompts[i].size()) - 1;
    last_index_[i] = seqlens_[i];
  }
  total_length_ = length;

  Binding binding(llm_);
  bind_llm(binding, embeds.data(), static_cast<int>(prompts.size()), length);
  binding.run();

  positions_.resize(tokens_.size());
  std::fill(last_index_.begin(), last_index_.end(), 0);
}

void Decoder::set_rows(int rows) {
  embed_step_.emplace(embed_);
  embed_step_->input("token_ids", view_of(tokens_, {rows, 1}, DType::kInt64));
  embed_step_->output("token_embeds", view_of(step_embeds_, {rows, 1, shape_.hidden_size}, DType::kFloat32));
  llm_step_.emplace(llm_);
  bind_llm(*llm_step_, step_embeds_.data(), rows, 1);
  seqlens_.resize(static_cast<size_t>(rows));  // never grows: the memory stays where it is bound
}

void Decoder::set_position(int row, int position) {
  positions_[static_cast<size_t>(row)] = position;
  seqlens_[static_cast<size_t>(row)] = position;
}

void Decoder::step() {
  total_length_ = *std::max_element(seqlens_.begin(), seqlens_.end()) + 1;
  embed_step_->run();
  llm_step_->run();
}

}  // namespace blip2rt
