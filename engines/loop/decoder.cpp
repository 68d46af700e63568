// Binds buffers to the graphs of the language model and runs them. Knows rows of tokens; not beams or scores.
#include "loop/decoder.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>

namespace blip2rt {

Decoder::Decoder(const Generator& generator, int max_rows, int capacity)
    : generator_(generator),
      shape_(generator.shape()),
      buffers_(generator, static_cast<size_t>(max_rows)),
      cache_({shape_.layers, max_rows, shape_.kv_heads, capacity, shape_.head_dim}),
      step_embeds_(static_cast<size_t>(max_rows) * static_cast<size_t>(shape_.hidden_size)),
      tokens_(static_cast<size_t>(max_rows)) {}

Decoder::InUse::InUse(Decoder& decoder) : decoder_(decoder) {
  if (decoder.in_use_.test_and_set(std::memory_order_acquire)) {
    throw std::runtime_error("this generation is being stepped already: one thread at a time");
  }
}

void Decoder::bind_llm(Binding& binding, float* inputs_embeds, int rows, int length) {
  buffers_.bind(binding, cache_, inputs_embeds, rows, length);
  if (cross_) buffers_.bind_cross(binding, *cross_, rows, encoder_length_);
}

Decoder::Embeds Decoder::embed(const Prefix& prefix, const Prompts& prompts) const {
  size_t longest = 0;
  for (const auto& prompt : prompts) longest = std::max(longest, prompt.size());
  Embeds embeds;
  embeds.rows = static_cast<int>(prompts.size());
  embeds.length = prefix.length + static_cast<int>(longest);
  const auto width = static_cast<size_t>(shape_.hidden_size);
  const auto row_size = static_cast<size_t>(embeds.length) * width;
  const auto prefix_size = static_cast<size_t>(prefix.length) * width;
  embeds.data.resize(prompts.size() * row_size);
  std::vector<int64_t> ids;
  for (const auto& prompt : prompts) ids.insert(ids.end(), prompt.begin(), prompt.end());
  std::vector<float> tokens;
  embed_tokens(generator_, ids, tokens);
  const float* next = tokens.data();
  for (size_t i = 0; i < prompts.size(); ++i) {
    float* row = embeds.data.data() + i * row_size;
    const size_t prompt_size = prompts[i].size() * width;
    std::copy_n(prefix.data + i * prefix_size, prefix_size, row);
    std::copy_n(next, prompt_size, row + prefix_size);
    next += prompt_size;
    embeds.lengths.push_back(prefix.length + static_cast<int>(prompts[i].size()));
  }
  return embeds;
}

void Decoder::encode(const Prefix& prefix, const Prompts& prompts) {
  Embeds embeds = embed(prefix, prompts);
  encoder_length_ = embeds.length;
  const int max_rows = cache_.rows();
  const CrossShape& cross = generator_.cross_shape();
  const CacheShape shape{shape_.layers, max_rows, cross.heads, embeds.length, cross.head_dim};
  cross_ = std::make_unique<KvCache>(shape);
  buffers_.encoder_mask.assign(static_cast<size_t>(max_rows) * static_cast<size_t>(embeds.length), 0);
  for (size_t i = 0; i < prompts.size(); ++i) {
    std::fill_n(buffers_.encoder_mask.begin() + static_cast<ptrdiff_t>(i) * embeds.length, embeds.lengths[i], 1);
  }
  buffers_.encoder_rows.clear();
  for (int row = 0; row < max_rows; ++row) buffers_.encoder_rows.push_back({cross_->place(row, 0), embeds.length});
  Binding binding(*generator_.encoder());
  binding.input("inputs_embeds", view(embeds.data.data(), {embeds.rows, embeds.length, shape_.hidden_size}));
  binding.input("attention_mask", view_of(buffers_.encoder_mask, {embeds.rows, embeds.length}, DType::kInt64));
  buffers_.bind_encoder(binding, *cross_, embeds.rows);
  binding.run();
}

void Decoder::read(const Prefix& prefix, const Prompts& prompts, int past) {
  Embeds embeds = embed(prefix, prompts);
  const auto length = static_cast<size_t>(embeds.length);
  buffers_.positions.resize(std::max(prompts.size() * length, tokens_.size()));
  for (size_t i = 0; i < prompts.size(); ++i) {
    for (size_t p = 0; p < length; ++p) buffers_.positions[i * length + p] = past + static_cast<int64_t>(p);
    buffers_.last_index[i] = embeds.lengths[i] - 1;
    buffers_.seqlens[i] = past + embeds.lengths[i] - 1;
    buffers_.cache_rows[i] = {0, 0, cache_.place(static_cast<int>(i), 0), past};
  }
  buffers_.total_length = past + embeds.length;
  Binding binding(generator_.llm());
  bind_llm(binding, embeds.data.data(), embeds.rows, embeds.length);
  binding.run();
  std::fill(buffers_.last_index.begin(), buffers_.last_index.end(), 0);
  // Every answer begins behind the longest prompt: whatever row it takes, it overwrites no prompt.
  answer_start_ = past + embeds.length;
  for (size_t i = 0; i < prompts.size(); ++i) {
    const int row = static_cast<int>(i);
    buffers_.cache_rows[i] = {cache_.place(row, 0), past + embeds.lengths[i], cache_.place(row, answer_start_), 0};
  }
}

void Decoder::set_rows(int rows) {
  rows_ = rows;
  embed_step_.emplace(generator_.embed());
  embed_step_->input("token_ids", view_of(tokens_, {rows, 1}, DType::kInt64));
  embed_step_->output("token_embeds", view_of(step_embeds_, {rows, 1, shape_.hidden_size}, DType::kFloat32));
  llm_step_.emplace(generator_.llm());
  bind_llm(*llm_step_, step_embeds_.data(), rows, 1);
}

void Decoder::set_answered(int row, int answered) {
  const auto i = static_cast<size_t>(row);
  CacheRow& where = buffers_.cache_rows[i];
  where.past_length = answered;
  buffers_.positions[i] = where.prompt_length + answered;
  buffers_.seqlens[i] = where.prompt_length + answered;
}

void Decoder::step() {
  const auto seqlens = buffers_.seqlens.begin();
  buffers_.total_length = *std::max_element(seqlens, seqlens + rows_) + 1;
  const auto start = std::chrono::steady_clock::now();
  embed_step_->run();
  llm_step_->run();
  graph_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

int Decoder::answer_start(int row) const {
  return buffers_.shares ? answer_start_ : buffers_.cache_rows[static_cast<size_t>(row)].prompt_length;
}

void Decoder::copy_row(int from, int to, int answered) {
  if (from == to) return;
  const int start = answer_start(from);
  CacheRow& where = buffers_.cache_rows[static_cast<size_t>(to)];
  where = buffers_.cache_rows[static_cast<size_t>(from)];
  where.past_start = cache_.place(to, answer_start_);
  cache_.copy_row(from, to, buffers_.shares ? start : 0, start + answered);
  if (!cross_) return;
  buffers_.encoder_rows[static_cast<size_t>(to)] = buffers_.encoder_rows[static_cast<size_t>(from)];
  if (!buffers_.shares_cross) cross_->copy_row(from, to, 0, encoder_length_);
  const auto mask = buffers_.encoder_mask.begin();
  std::copy_n(mask + from * encoder_length_, encoder_length_, mask + to * encoder_length_);
}

void Decoder::copy_answer(int from, int to, int answered) {
  const int start = answer_start(from);
  cache_.copy_row(from, to, start, start + answered);
}

void Decoder::copy_logits(int from, int to) {
  if (from != to) std::copy_n(logits(from), shape_.vocab_size, logits(to));
}

}  // namespace blip2rt
