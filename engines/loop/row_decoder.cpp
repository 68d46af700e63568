// Binds buffers to the graphs of an engine with a cache for each row, and moves its keys and values. Knows tensor
// names.
#include "loop/row_decoder.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>

namespace blip2rt {
namespace {

constexpr size_t kAlignment = 256;  // bytes, of every tensor in the engine's memory
constexpr float kMasked = -1e9f;    // the score of an empty position

// Bytes of `heads` runs of `bytes`, and as many more as the next tensor needs to be aligned.
size_t aligned(size_t heads, size_t bytes) {
  while (heads * bytes % kAlignment != 0) ++heads;
  return heads * bytes;
}

// The largest tensor that a run returns: one position of all rows, or all positions of one.
size_t largest(int rows, const CacheShape& shape) {
  const auto heads = static_cast<size_t>(shape.heads);
  const size_t width = product_of(shape.head_dim, element_size(shape.dtype));
  size_t most = aligned(product_of(rows, heads), width);
  for (int length = 1; length <= shape.capacity; ++length)
    most = std::max(most, aligned(heads, product_of(length, width)));
  return most;
}

std::unique_ptr<void, std::function<void(void*)>> allocated(Memory& memory, size_t bytes) {
  return {memory.allocate(bytes), [&memory](void* address) { memory.release(address); }};
}

}  // namespace

RowDecoder::RowDecoder(const Generator& generator)
    : Decoder(generator),
      rows_(generator.rows()),
      cache_({shape_.layers, rows_.rows, shape_.kv_heads, rows_.capacity, shape_.head_dim, rows_.dtype}, memory()),
      encoder_lengths_(static_cast<size_t>(rows_.rows)),
      fresh_(allocated(memory(), product_of(shape_.layers, 2, largest(rows_.rows, cache_.shape())))),
      inputs_(inputs_for(rows_.rows, 1)),
      steps_(static_cast<size_t>(rows_.rows) + 1),
      logits_(product_of(rows_.rows, shape_.vocab_size)) {
  for (int layer = 0; layer < shape_.layers; ++layer) {
    for (const char* part : {"key_", "value_"}) {
      const std::string name = part + std::to_string(layer);
      names_.insert(names_.end(), {"past_" + name, "new_" + name, "cross_" + name});
    }
  }
  if (generator.encoder() != nullptr) {
    const CrossShape& cross = generator.cross_shape();
    const CacheShape shape{shape_.layers, rows_.rows, cross.heads, rows_.capacity, cross.head_dim, rows_.dtype};
    cross_ = std::make_unique<KvCache>(shape, memory());
    fresh_cross_ = allocated(memory(), product_of(shape_.layers, 2, largest(1, shape)));
  }
  for (const KvCache* cache : {static_cast<const KvCache*>(&cache_), static_cast<const KvCache*>(cross_.get())}) {
    if (cache == nullptr || cache->bytes_per_row() % kAlignment == 0) continue;
    throw std::runtime_error("a row of the cache has " + std::to_string(cache->bytes_per_row()) +
                             " bytes, no multiple of 256: build the plans with another capacity");
  }
}

Memory& RowDecoder::memory() const { return generator_.llm().memory(); }

RowDecoder::Inputs RowDecoder::inputs_for(int rows, int length) const {
  Inputs inputs;
  inputs.embeds.resize(product_of(rows, length, shape_.hidden_size));
  inputs.position_ids.resize(product_of(rows, length));
  inputs.last_index.resize(static_cast<size_t>(rows));
  inputs.past_mask.resize(product_of(rows, rows_.capacity));
  if (generator_.encoder() != nullptr) inputs.encoder_mask.resize(product_of(rows, rows_.capacity));
  return inputs;
}

// Describes new positions behind `past` ones of a row's cache. A row without any computes what nobody reads.
void RowDecoder::set_row(Inputs& inputs, int index, int length, int past, int encoder_length) const {
  const auto row = static_cast<size_t>(index), capacity = static_cast<size_t>(rows_.capacity);
  for (int i = 0; i < length; ++i)
    inputs.position_ids[row * static_cast<size_t>(length) + static_cast<size_t>(i)] = past + i;
  inputs.last_index[row] = length - 1;
  float* mask = inputs.past_mask.data() + row * capacity;
  std::fill_n(mask, past, 0.0f);
  std::fill(mask + past, mask + capacity, kMasked);
  if (inputs.encoder_mask.empty()) return;
  int64_t* seen = inputs.encoder_mask.data() + row * capacity;
  std::fill_n(seen, encoder_length, 1);
  std::fill(seen + encoder_length, seen + capacity, 0);
}

std::unique_ptr<Binding> RowDecoder::bind(Inputs& inputs, int first_row, int rows, int length, float* logits) const {
  auto binding = generator_.llm().bind();
  binding->input("inputs_embeds", {inputs.embeds.data(), {rows, length, shape_.hidden_size}});
  binding->input("position_ids", {inputs.position_ids.data(), {rows, length}, DType::kInt64});
  binding->input("last_index", {inputs.last_index.data(), {rows}, DType::kInt64});
  binding->input("past_mask", {inputs.past_mask.data(), {rows, rows_.capacity}});
  if (cross_ != nullptr) {
    binding->input("encoder_mask", {inputs.encoder_mask.data(), {rows, rows_.capacity}, DType::kInt64});
  }
  binding->output("logits", {logits, {rows, shape_.vocab_size}});
  for (int i = 0; i < shape_.layers * 2; ++i) {
    const std::string* names = &names_[static_cast<size_t>(i) * 3];
    binding->input(names[0].c_str(), cache_.tensor(i / 2, i % 2, rows, first_row));
    char* fresh = static_cast<char*>(fresh_.get()) + static_cast<size_t>(i) * fresh_stride(cache_, rows, length);
    binding->output(names[1].c_str(), {fresh, {rows, shape_.kv_heads, length, shape_.head_dim}, rows_.dtype});
    if (cross_ != nullptr) binding->input(names[2].c_str(), cross_->tensor(i / 2, i % 2, rows, first_row));
  }
  return binding;
}

// Bytes from one tensor that a run returns to the next.
size_t RowDecoder::fresh_stride(const KvCache& cache, int rows, int length) {
  const CacheShape& shape = cache.shape();
  return aligned(product_of(rows, shape.heads), product_of(length, shape.head_dim, element_size(shape.dtype)));
}

void RowDecoder::run(Binding& binding) {
  failed_ = true;  // unless it returns
  binding.run();
  failed_ = false;
}

void RowDecoder::encode(const std::vector<PromptSpan>& spans) {
  for (const PromptSpan& span : spans) {
    const int length = span.length(), row = span.context.start / rows_.capacity;
    std::vector<float> embeds = embed_padded({span}, length);
    std::vector<int64_t> mask(static_cast<size_t>(length), 1);
    const auto binding = generator_.encoder()->bind();
    binding->input("inputs_embeds", {embeds.data(), {1, length, shape_.hidden_size}});
    binding->input("attention_mask", {mask.data(), {1, length}, DType::kInt64});
    const CacheShape& shape = cross_->shape();
    const size_t stride = fresh_stride(*cross_, 1, length);
    char* fresh = static_cast<char*>(fresh_cross_.get());
    for (int i = 0; i < shape_.layers * 2; ++i) {
      const TensorView view(fresh + static_cast<size_t>(i) * stride, {1, shape.heads, length, shape.head_dim},
                            shape.dtype);
      binding->output(names_[static_cast<size_t>(i) * 3 + 2].c_str(), view);
    }
    run(*binding);
    cross_->append(row * rows_.capacity, length, 1, fresh, 0, stride);
    encoder_lengths_[static_cast<size_t>(row)] = length;
  }
}

void RowDecoder::read(const std::vector<PromptSpan>& spans, int first) {
  prompts_read_ = true;
  for (size_t i = 0; i < spans.size(); ++i) {
    const Context& context = spans[i].context;
    const int length = spans[i].length(), row = context.start / rows_.capacity;
    Inputs inputs = inputs_for(1, length);
    inputs.embeds = embed_padded({spans[i]}, length);
    set_row(inputs, 0, length, context.before, encoder_lengths_[static_cast<size_t>(row)]);
    float* logits = logits_.data() + (static_cast<size_t>(first) + i) * static_cast<size_t>(shape_.vocab_size);
    run(*bind(inputs, row, 1, length, logits));
    const size_t stride = fresh_stride(cache_, 1, length);
    cache_.append(context.start + context.before, length, 1, static_cast<char*>(fresh_.get()), 0, stride);
  }
}

int RowDecoder::add(int64_t token, const Context& context, bool) {
  added_.push_back({context.start / rows_.capacity, context.before, token});
  return rows() - 1;
}

int RowDecoder::add(const float*, const Context&, bool) {
  throw std::logic_error("rows of embeddings are read as prompts");
}

// Runs the first rows of the cache, up to the last one that was added.
void RowDecoder::step() {
  prompts_read_ = false;
  int rows = 0;
  for (const Row& one : added_) rows = std::max(rows, one.row + 1);
  std::vector<int64_t> tokens(static_cast<size_t>(rows));
  for (int row = 0; row < rows; ++row) set_row(inputs_, row, 1, 0, 1);
  for (const Row& one : added_) {
    tokens[static_cast<size_t>(one.row)] = one.token;
    set_row(inputs_, one.row, 1, one.position, encoder_lengths_[static_cast<size_t>(one.row)]);
  }
  const auto start = std::chrono::steady_clock::now();
  embed_tokens(tokens, embeds_);
  std::copy(embeds_.begin(), embeds_.end(), inputs_.embeds.begin());
  std::unique_ptr<Binding>& binding = steps_[static_cast<size_t>(rows)];
  if (binding == nullptr) binding = bind(inputs_, 0, rows, 1, logits_.data());
  run(*binding);
  append(rows);
  graph_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Moves the keys and values of a step into the cache: neighbouring rows at the same position, as beams, in one copy.
void RowDecoder::append(int rows) {
  const size_t stride = fresh_stride(cache_, rows, 1);
  for (size_t i = 0, end = 0; i < added_.size(); i = end) {
    const Row& first = added_[i];
    for (end = i + 1; end < added_.size(); ++end) {
      const auto apart = static_cast<int>(end - i);
      if (added_[end].row != first.row + apart || added_[end].position != first.position) break;
    }
    cache_.append(first.row * rows_.capacity + first.position, 1, static_cast<int>(end - i),
                  static_cast<char*>(fresh_.get()), first.row, stride);
  }
}

float* RowDecoder::logits(int row) {
  const int place = prompts_read_ ? row : added_[static_cast<size_t>(row)].row;
  return logits_.data() + static_cast<size_t>(place) * static_cast<size_t>(shape_.vocab_size);
}

void RowDecoder::share(int from, int to, int count) {
  cache_.copy_positions(from, to, count);
  if (cross_ == nullptr) return;
  const auto length = encoder_lengths_[static_cast<size_t>(from / rows_.capacity)];
  cross_->copy_positions(from, to, length);
  encoder_lengths_[static_cast<size_t>(to / rows_.capacity)] = length;
}

void RowDecoder::forget(int start, int rows) noexcept {
  try {
    for (KvCache* cache : {&cache_, cross_.get()}) {
      if (cache == nullptr) continue;
      const std::vector<char> zeros(cache->bytes_per_position() * static_cast<size_t>(rows_.capacity));
      for (int row = 0; row < rows; ++row) {
        cache->load(start + row * rows_.capacity, 0, rows_.capacity, rows_.capacity, zeros.data());
      }
    }
  } catch (...) {
    failed_ = true;
  }
}

}  // namespace blip2rt
