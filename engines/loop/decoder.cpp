// Binds buffers to the graphs of the language model and runs them. Knows rows of tokens; not beams or scores.
#include "loop/decoder.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <stdexcept>

#include "ops/attention_op.h"

namespace blip2rt {
namespace {

template <class T>
Value view_of(std::vector<T>& data, const std::vector<int64_t>& shape, DType dtype) {
  size_t count = 1;
  for (int64_t axis : shape) count *= static_cast<size_t>(axis);
  return view(data.data(), count * sizeof(T), shape, dtype);
}

}  // namespace

Decoder::Decoder(const Generator& generator, int max_rows, int capacity)
    : generator_(generator),
      shares_(generator.llm().find_input(kCacheRows) != nullptr),
      shares_cross_(generator.llm().find_input(kEncoderRows) != nullptr),
      shape_(generator.shape()),
      cache_({shape_.layers, max_rows, shape_.kv_heads, capacity, shape_.head_dim}, generator.llm().memory()) {
  const auto rows = static_cast<size_t>(max_rows);
  step_embeds_.resize(rows * static_cast<size_t>(shape_.hidden_size));
  logits_.resize(rows * static_cast<size_t>(shape_.vocab_size));
  tokens_.resize(rows);
  last_index_.resize(rows);
  seqlens_.resize(rows);
  cache_rows_.resize(rows);
  for (int layer = 0; layer < shape_.layers; ++layer) {
    for (const char* part : {"key_", "value_"}) {
      for (const char* time : {"past_", "present_"}) cache_names_.push_back(time + (part + std::to_string(layer)));
      cross_names_.push_back("cross_" + (part + std::to_string(layer)));
    }
  }
}

Decoder::InUse::InUse(Decoder& decoder) : decoder_(decoder) {
  if (decoder.in_use_.test_and_set(std::memory_order_acquire)) {
    throw std::runtime_error("this generation is being stepped already: one thread at a time");
  }
}

void Decoder::bind_llm(Binding& binding, float* inputs_embeds, int rows, int length) {
  binding.input("inputs_embeds", view(inputs_embeds, {rows, length, shape_.hidden_size}));
  binding.input("position_ids", view_of(positions_, {rows, length}, DType::kInt64));
  binding.input("last_index", view_of(last_index_, {rows}, DType::kInt64));
  binding.input("seqlens_k", view_of(seqlens_, {rows}, DType::kInt32));
  binding.input("total_sequence_length", view(&total_length_, sizeof total_length_, {}, DType::kInt32));
  binding.output("logits", view_of(logits_, {rows, shape_.vocab_size}, DType::kFloat32));
  if (shares_) {
    const size_t bytes = static_cast<size_t>(rows) * sizeof(CacheRow);
    binding.input(kCacheRows, view(cache_rows_.data(), bytes, {rows, 4}, DType::kInt32));
  }
  for (int i = 0; i < shape_.layers * 2; ++i) {
    const Value buffer = cache_.tensor(i / 2, i % 2, rows);
    binding.input(cache_names_[static_cast<size_t>(i) * 2].c_str(), buffer);
    binding.output(cache_names_[static_cast<size_t>(i) * 2 + 1].c_str(), buffer);
  }
  if (cross_) bind_cross(binding, rows, false);
}

void Decoder::bind_cross(Binding& binding, int rows, bool outputs) {
  for (int i = 0; i < shape_.layers * 2; ++i) {
    const Value buffer = cross_->tensor(i / 2, i % 2, rows);
    const char* name = cross_names_[static_cast<size_t>(i)].c_str();
    outputs ? binding.output(name, buffer) : binding.input(name, buffer);
  }
  const char* mask = outputs ? "attention_mask" : "encoder_mask";  // its name in the encoder, and in the decoder
  binding.input(mask, view_of(encoder_mask_, {rows, encoder_length_}, DType::kInt64));
  if (shares_cross_ && !outputs) binding.input(kEncoderRows, view_of(encoder_rows_, {rows}, DType::kInt32));
}

std::vector<float> Decoder::embed_tokens(const Prompts& prompts) const {
  std::vector<int64_t> ids;
  for (const auto& prompt : prompts) ids.insert(ids.end(), prompt.begin(), prompt.end());
  std::vector<float> embeds(ids.size() * static_cast<size_t>(shape_.hidden_size));
  if (ids.empty()) return embeds;
  const auto count = static_cast<int64_t>(ids.size());
  Binding binding(generator_.embed());
  binding.input("token_ids", view_of(ids, {1, count}, DType::kInt64));
  binding.output("token_embeds", view_of(embeds, {1, count, shape_.hidden_size}, DType::kFloat32));
  binding.run();
  return embeds;
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
  const std::vector<float> tokens = embed_tokens(prompts);
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
  cross_ = std::make_unique<KvCache>(shape, generator_.llm().memory());
  encoder_mask_.assign(static_cast<size_t>(max_rows) * static_cast<size_t>(embeds.length), 0);
  for (size_t i = 0; i < prompts.size(); ++i) {
    std::fill_n(encoder_mask_.begin() + static_cast<ptrdiff_t>(i) * embeds.length, embeds.lengths[i], 1);
  }
  encoder_rows_.resize(static_cast<size_t>(max_rows));
  std::iota(encoder_rows_.begin(), encoder_rows_.end(), 0);
  Binding binding(*generator_.encoder());
  binding.input("inputs_embeds", view(embeds.data.data(), {embeds.rows, embeds.length, shape_.hidden_size}));
  bind_cross(binding, embeds.rows, true);
  binding.run();
}

void Decoder::read(const Prefix& prefix, const Prompts& prompts, int past) {
  Embeds embeds = embed(prefix, prompts);
  const auto length = static_cast<size_t>(embeds.length);
  positions_.resize(std::max(prompts.size() * length, tokens_.size()));
  for (size_t i = 0; i < prompts.size(); ++i) {
    for (size_t p = 0; p < length; ++p) positions_[i * length + p] = past + static_cast<int64_t>(p);
    last_index_[i] = embeds.lengths[i] - 1;
    seqlens_[i] = past + embeds.lengths[i] - 1;
    cache_rows_[i] = {static_cast<int32_t>(i), 0, 0, past};
  }
  total_length_ = past + embeds.length;
  Binding binding(generator_.llm());
  bind_llm(binding, embeds.data.data(), embeds.rows, embeds.length);
  binding.run();
  std::fill(last_index_.begin(), last_index_.end(), 0);
  // Every answer begins behind the longest prompt: whatever row it takes, it overwrites no prompt.
  for (size_t i = 0; i < prompts.size(); ++i) {
    cache_rows_[i] = {static_cast<int32_t>(i), past + embeds.lengths[i], past + embeds.length, 0};
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
  CacheRow& where = cache_rows_[static_cast<size_t>(row)];
  where.before = answered;
  positions_[static_cast<size_t>(row)] = where.prompt_length + answered;
  seqlens_[static_cast<size_t>(row)] = where.prompt_length + answered;
}

void Decoder::step() {
  total_length_ = *std::max_element(seqlens_.begin(), seqlens_.begin() + rows_) + 1;
  const auto start = std::chrono::steady_clock::now();
  embed_step_->run();
  llm_step_->run();
  graph_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

int Decoder::answer_start(int row) const {
  const CacheRow& where = cache_rows_[static_cast<size_t>(row)];
  return shares_ ? where.start : where.prompt_length;
}

void Decoder::copy_row(int from, int to, int answered) {
  if (from == to) return;
  const int start = answer_start(from);
  cache_rows_[static_cast<size_t>(to)] = cache_rows_[static_cast<size_t>(from)];
  cache_.copy_row(from, to, shares_ ? start : 0, start + answered);
  if (!cross_) return;
  encoder_rows_[static_cast<size_t>(to)] = encoder_rows_[static_cast<size_t>(from)];
  if (!shares_cross_) cross_->copy_row(from, to, 0, encoder_length_);
  const auto mask = encoder_mask_.begin();
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
