// Binds buffers to the graphs of the language model and runs them. Knows tensor names.
#include "loop/decoder.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>

#include "ops/attention_op.h"
#include "ops/gather_op.h"

namespace blip2rt {
namespace {

int longest_of(const std::vector<PromptSpan>& spans) {
  int longest = 0;
  for (const PromptSpan& span : spans) longest = std::max(longest, span.length());
  return longest;
}

}  // namespace

PoolDecoder::Inputs::Inputs(size_t rows, size_t length, size_t width)
    : embeds(product_of(rows, length, width)),
      position_ids(product_of(rows, length)),
      last_index(rows),
      seqlens(rows),
      cache_rows(rows),
      encoder_rows(rows) {}

PoolDecoder::PoolDecoder(const Generator& generator, const DecoderSizes& sizes)
    : Decoder(generator),
      max_rows_(sizes.rows),
      selects_logits_(generator.llm().find_input(kLogitRows) != nullptr),
      logits_(product_of(selects_logits_ ? sizes.logits : sizes.rows, shape_.vocab_size)),
      logits_of_(static_cast<size_t>(sizes.rows)),
      cache_({shape_.layers, 1, shape_.kv_heads, sizes.positions, shape_.head_dim}),
      inputs_(static_cast<size_t>(sizes.rows), 1, static_cast<size_t>(shape_.hidden_size)) {
  (void)cache_.place(0, sizes.positions);
  if (generator.encoder() != nullptr) {
    const CrossShape& cross = generator.cross_shape();
    const CacheShape shape{shape_.layers, sizes.encoder_rows, cross.heads, sizes.encoder_positions, cross.head_dim};
    encoder_cache_ = std::make_unique<KvCache>(shape);
    (void)encoder_cache_->place(sizes.encoder_rows - 1, sizes.encoder_positions);
  }
  tokens_.reserve(static_cast<size_t>(sizes.rows));
  token_rows_.reserve(static_cast<size_t>(sizes.rows));
  inputs_.logit_rows.reserve(static_cast<size_t>(sizes.rows));
  for (int layer = 0; layer < shape_.layers; ++layer) {
    for (const char* part : {"key_", "value_"}) {
      for (const char* time : {"past_", "present_"}) cache_names_.push_back(time + (part + std::to_string(layer)));
      encoder_names_.push_back("cross_" + (part + std::to_string(layer)));
    }
  }
}

void Decoder::embed_tokens(std::vector<int64_t>& ids, std::vector<float>& embeds) const {
  embeds.resize(product_of(ids.size(), shape_.hidden_size));
  if (ids.empty()) return;
  const auto count = static_cast<int64_t>(ids.size());
  const auto binding = generator_.embed().bind();
  binding->input("token_ids", {ids.data(), {1, count}, DType::kInt64});
  binding->output("token_embeds", {embeds.data(), {1, count, shape_.hidden_size}});
  binding->run();
}

std::vector<float> Decoder::embed_padded(const std::vector<PromptSpan>& spans, int length) const {
  const auto width = static_cast<size_t>(shape_.hidden_size);
  std::vector<int64_t> ids;
  for (const PromptSpan& span : spans) ids.insert(ids.end(), span.tokens, span.tokens + span.token_count);
  std::vector<float> tokens, embeds(product_of(spans.size(), length, width));
  embed_tokens(ids, tokens);
  const float* next = tokens.data();
  float* row = embeds.data();
  for (const PromptSpan& span : spans) {
    const size_t given = static_cast<size_t>(span.embed_count) * width;
    const size_t looked_up = static_cast<size_t>(span.token_count) * width;
    std::copy_n(span.embeds, given, row);
    std::copy_n(next, looked_up, row + given);
    next += looked_up;
    row += static_cast<size_t>(length) * width;
  }
  return embeds;
}

void PoolDecoder::encode(const std::vector<PromptSpan>& spans) {
  const auto rows = static_cast<int>(spans.size());
  const int length = longest_of(spans);
  const CacheShape& pool = encoder_cache_->shape();
  const bool fills_pool = rows == pool.rows && length == pool.capacity;
  if (!fills_pool && rows > 1) throw std::logic_error("several prompts are encoded together into a pool of their own");
  std::vector<float> embeds = embed_padded(spans, length);
  std::vector<int64_t> mask(static_cast<size_t>(rows) * static_cast<size_t>(length));
  for (size_t i = 0; i < spans.size(); ++i) {
    std::fill_n(mask.begin() + static_cast<ptrdiff_t>(i) * length, spans[i].length(), 1);
  }
  std::optional<KvCache> own;
  if (!fills_pool) own.emplace(CacheShape{pool.layers, 1, pool.heads, length, pool.head_dim});
  KvCache& output = fills_pool ? *encoder_cache_ : *own;
  const auto binding = generator_.encoder()->bind();
  binding->input("inputs_embeds", {embeds.data(), {rows, length, shape_.hidden_size}});
  binding->input("attention_mask", {mask.data(), {rows, length}, DType::kInt64});
  for (int i = 0; i < shape_.layers * 2; ++i) {
    binding->output(encoder_names_[static_cast<size_t>(i)].c_str(), output.tensor(i / 2, i % 2, rows));
  }
  binding->run();
  // A cache of one row has the layout of save().
  if (own) encoder_cache_->load(spans[0].context.encoder_start, 0, length, length, own->data());
}

void PoolDecoder::set_row(Inputs& inputs, size_t row, const Context& context, int length, int padded_length) {
  const int past = context.prompt_length + context.before;
  inputs.cache_rows[row] = {context.prompt_start, context.prompt_length, context.start, context.before};
  inputs.last_index[row] = length - 1;
  inputs.seqlens[row] = past + length - 1;
  for (int i = 0; i < padded_length; ++i) {
    inputs.position_ids[row * static_cast<size_t>(padded_length) + static_cast<size_t>(i)] = past + i;
  }
  inputs.total_length = std::max(inputs.total_length, past + padded_length);
  if (!encoder_cache_) return;
  const int capacity = encoder_cache_->shape().capacity;
  const int start = encoder_cache_->place(context.encoder_start / capacity, context.encoder_start % capacity);
  inputs.encoder_rows[row] = {start, context.encoder_length};
  inputs.encoder_length = std::max(inputs.encoder_length, context.encoder_length);
}

// Appends a row to those that need logits.
void PoolDecoder::score_row(Inputs& inputs, int row) {
  const size_t place = inputs.logit_rows.size();
  if ((place + 1) * static_cast<size_t>(shape_.vocab_size) > logits_.size()) {
    throw std::logic_error("more rows need logits than a run has");
  }
  logits_of_[static_cast<size_t>(row)] = place;
  inputs.logit_rows.push_back(row);
}

void PoolDecoder::bind(Binding& binding, Inputs& inputs, int rows, int length) {
  binding.input("inputs_embeds", {inputs.embeds.data(), {rows, length, shape_.hidden_size}});
  binding.input("position_ids", {inputs.position_ids.data(), {rows, length}, DType::kInt64});
  binding.input("last_index", {inputs.last_index.data(), {rows}, DType::kInt64});
  binding.input("seqlens_k", {inputs.seqlens.data(), {rows}, DType::kInt32});
  binding.input("total_sequence_length", {&inputs.total_length, {}, DType::kInt32});
  const auto count = static_cast<size_t>(rows);
  binding.input(kCacheRows, {inputs.cache_rows.data(), {rows, 4}, DType::kInt32});
  const auto scored = static_cast<int64_t>(inputs.logit_rows.size());
  if (selects_logits_) binding.input(kLogitRows, {inputs.logit_rows.data(), {scored}, DType::kInt32});
  binding.output("logits", {logits_.data(), {scored, shape_.vocab_size}});
  for (int i = 0; i < shape_.layers * 2; ++i) {
    const TensorView buffer = cache_.tensor(i / 2, i % 2, rows);
    binding.input(cache_names_[static_cast<size_t>(i) * 2].c_str(), buffer);
    binding.output(cache_names_[static_cast<size_t>(i) * 2 + 1].c_str(), buffer);
  }
  if (!encoder_cache_) return;
  for (int i = 0; i < shape_.layers * 2; ++i) {
    binding.input(encoder_names_[static_cast<size_t>(i)].c_str(), encoder_cache_->tensor(i / 2, i % 2, rows));
  }
  inputs.encoder_mask.assign(count * static_cast<size_t>(inputs.encoder_length), 1);
  binding.input("encoder_mask", {inputs.encoder_mask.data(), {rows, inputs.encoder_length}, DType::kInt64});
  binding.input(kEncoderRows, {inputs.encoder_rows.data(), {rows, 2}, DType::kInt32});
}

void PoolDecoder::read(const std::vector<PromptSpan>& spans, int) {
  const int length = longest_of(spans);
  Inputs inputs(spans.size(), static_cast<size_t>(length), 0);
  inputs.embeds = embed_padded(spans, length);
  for (size_t i = 0; i < spans.size(); ++i) {
    set_row(inputs, i, spans[i].context, spans[i].length(), length);
    score_row(inputs, static_cast<int>(i));
  }
  const auto binding = generator_.llm().bind();
  bind(*binding, inputs, static_cast<int>(spans.size()), length);
  binding->run();
}

void PoolDecoder::clear() {
  rows_ = 0;
  inputs_.total_length = inputs_.encoder_length = 0;
  inputs_.logit_rows.clear();
  tokens_.clear();
  token_rows_.clear();
}

int PoolDecoder::add(int64_t token, const Context& context, bool scored) {
  tokens_.push_back(token);
  token_rows_.push_back(rows_);
  return add(nullptr, context, scored);
}

int PoolDecoder::add(const float* embedding, const Context& context, bool scored) {
  if (rows_ == max_rows_) throw std::logic_error("more rows than a run has");
  const auto row = static_cast<size_t>(rows_), width = static_cast<size_t>(shape_.hidden_size);
  if (embedding != nullptr) std::copy_n(embedding, width, inputs_.embeds.data() + row * width);
  set_row(inputs_, row, context, 1, 1);
  if (scored || !selects_logits_) score_row(inputs_, rows_);
  return rows_++;
}

// Looks up the rows' tokens. If every row has one, the graph writes to the right place.
void PoolDecoder::embed_rows() {
  const auto width = static_cast<size_t>(shape_.hidden_size);
  if (tokens_.size() < static_cast<size_t>(rows_)) {
    std::vector<float> embeds;
    embed_tokens(tokens_, embeds);
    for (size_t i = 0; i < tokens_.size(); ++i) {
      std::copy_n(embeds.data() + i * width, width,
                  inputs_.embeds.data() + static_cast<size_t>(token_rows_[i]) * width);
    }
    return;
  }
  if (embed_bound_rows_ != rows_) {
    embed_bound_rows_ = 0;
    embed_ = generator_.embed().bind();
    embed_->input("token_ids", {tokens_.data(), {rows_, 1}, DType::kInt64});
    embed_->output("token_embeds", {inputs_.embeds.data(), {rows_, 1, shape_.hidden_size}});
    embed_bound_rows_ = rows_;
  }
  embed_->run();
}

void PoolDecoder::step() {
  if (inputs_.logit_rows.empty()) score_row(inputs_, 0);  // an output has a row
  const size_t scored = inputs_.logit_rows.size();
  if (bound_rows_ != rows_ || bound_logits_ != scored || bound_encoder_length_ != inputs_.encoder_length) {
    bound_rows_ = 0;
    llm_ = generator_.llm().bind();
    bind(*llm_, inputs_, rows_, 1);
    bound_rows_ = rows_;
    bound_logits_ = scored;
    bound_encoder_length_ = inputs_.encoder_length;
  }
  const auto start = std::chrono::steady_clock::now();
  embed_rows();
  llm_->run();
  graph_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace blip2rt
