// Gathers the rows of a run, binds them and runs the graphs.
#include "loop/row_decoder.h"

#include <algorithm>
#include <stdexcept>

namespace blip2rt {

RowDecoder::RowDecoder(const Generator& generator, int max_rows, int positions, bool reads_prompts_whole)
    : generator_(generator),
      shape_(generator.shape()),
      max_rows_(max_rows),
      buffers_(generator, static_cast<size_t>(max_rows)),
      cache_({shape_.layers, 1, shape_.kv_heads, positions, shape_.head_dim}),
      embeds_(static_cast<size_t>(max_rows) * static_cast<size_t>(shape_.hidden_size)) {
  const bool encodes = generator.encoder() != nullptr;
  if (!buffers_.shares || (encodes && !buffers_.shares_cross)) {
    throw std::runtime_error(
        "requests share steps with the core's own attention alone: run on a CPU, with ONNX Runtime "
        "1.21 or newer");
  }
  if (generator.shape().bidirectional_prompt && !reads_prompts_whole) {
    throw std::runtime_error(
        "the positions of this model's prompt see each other, and cannot be rows of their own: only caption, ask and "
        "chat read it whole");
  }
  (void)cache_.place(0, positions);
  if (encodes) {
    const CrossShape& cross = generator.cross_shape();
    cross_ = std::make_unique<KvCache>(CacheShape{shape_.layers, 1, cross.heads, positions, cross.head_dim});
    buffers_.encoder_rows.resize(static_cast<size_t>(max_rows));
  }
  buffers_.positions.resize(static_cast<size_t>(max_rows));
  tokens_.reserve(static_cast<size_t>(max_rows));
  token_rows_.reserve(static_cast<size_t>(max_rows));
}

void RowDecoder::clear() {
  rows_ = 0;
  mask_length_ = 0;
  tokens_.clear();
  token_rows_.clear();
}

int RowDecoder::add(int64_t token, const Seen& seen) {
  tokens_.push_back(token);
  token_rows_.push_back(rows_);
  return add(nullptr, seen);
}

int RowDecoder::add(const float* embedding, const Seen& seen) {
  if (rows_ == max_rows_) throw std::logic_error("more rows than a run has");
  const auto row = static_cast<size_t>(rows_);
  const auto width = static_cast<size_t>(shape_.hidden_size);
  if (embedding != nullptr) std::copy_n(embedding, width, embeds_.data() + row * width);
  buffers_.cache_rows[row] = {seen.prompt_start, seen.prompt_length, seen.start, seen.before};
  buffers_.positions[row] = seen.prompt_length + seen.before;
  buffers_.seqlens[row] = seen.prompt_length + seen.before;
  if (cross_) buffers_.encoder_rows[row] = {seen.cross_start, seen.cross_length};
  mask_length_ = std::max(mask_length_, seen.cross_length);
  return rows_++;
}

void RowDecoder::embed() {
  embed_tokens(generator_, tokens_, token_embeds_);
  const auto width = static_cast<size_t>(shape_.hidden_size);
  for (size_t i = 0; i < token_rows_.size(); ++i) {
    std::copy_n(token_embeds_.data() + i * width, width, embeds_.data() + static_cast<size_t>(token_rows_[i]) * width);
  }
}

void RowDecoder::run(bool in_order) {
  embed();
  const auto seqlens = buffers_.seqlens.begin();
  buffers_.total_length = *std::max_element(seqlens, seqlens + rows_) + 1;
  if (in_order) buffers_.seqlens[0] = buffers_.seqlens[static_cast<size_t>(rows_) - 1];
  buffers_.last_index[0] = in_order ? rows_ - 1 : 0;
  const Bound bound = {in_order ? 1 : rows_, in_order ? rows_ : 1, mask_length_};
  if (!(bound == bound_)) {
    bound_ = {0, 0, 0};
    // Rows read exactly what is theirs: nothing is masked.
    buffers_.encoder_mask.assign(static_cast<size_t>(bound.rows) * static_cast<size_t>(mask_length_), 1);
    llm_.emplace(generator_.llm());
    buffers_.bind(*llm_, cache_, embeds_.data(), bound.rows, bound.length);
    if (cross_) buffers_.bind_cross(*llm_, *cross_, bound.rows, mask_length_);
    bound_ = bound;
  }
  llm_->run();
}

void RowDecoder::encode(const float* prefix, int prefix_length, const std::vector<int64_t>& prompt, int start) {
  const int length = prefix_length + static_cast<int>(prompt.size());
  std::vector<int64_t> ids = prompt, mask(static_cast<size_t>(length), 1);
  std::vector<float> tokens,
      embeds(prefix, prefix + static_cast<size_t>(prefix_length) * static_cast<size_t>(shape_.hidden_size));
  embed_tokens(generator_, ids, tokens);
  embeds.insert(embeds.end(), tokens.begin(), tokens.end());
  const CacheShape& pool = cross_->shape();
  KvCache said({pool.layers, 1, pool.heads, length, pool.head_dim});
  Binding binding(*generator_.encoder());
  binding.input("inputs_embeds", view(embeds.data(), {1, length, shape_.hidden_size}));
  binding.input("attention_mask", view_of(mask, {1, length}, DType::kInt64));
  buffers_.bind_encoder(binding, said, 1);
  binding.run();
  // A cache of one row is what save() writes: (layers * 2, heads, length, head_dim).
  cross_->load(0, start, 0, length, length, said.row_start(0, 0));
}

}  // namespace blip2rt
