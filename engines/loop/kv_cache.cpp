// Allocates the key/value cache and copies positions of it.
#include "loop/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <new>

namespace blip2rt {

KvCache::KvCache(const CacheShape& shape)
    : shape_(shape),
      row_size_(product_of(shape.heads, shape.capacity, shape.head_dim)),
      buffer_size_(product_of(shape.heads, shape.capacity, shape.head_dim, shape.rows)),
      memory_(::operator new(
                  product_of(shape.heads, shape.capacity, shape.head_dim, shape.rows, shape.layers, 2 * sizeof(float))),
              [](void* memory) { ::operator delete(memory); }) {}

TensorView KvCache::tensor(int layer, int which, int rows) {
  return {at(layer * 2 + which, 0, 0), {rows, shape_.heads, shape_.capacity, shape_.head_dim}};
}

float* KvCache::at(int buffer, int head, int position) {
  const auto place = static_cast<size_t>(head) * static_cast<size_t>(shape_.capacity) + static_cast<size_t>(position);
  return data() + static_cast<size_t>(buffer) * buffer_size_ + place * static_cast<size_t>(shape_.head_dim);
}

void KvCache::copy_positions(int from, int to, int count) {
  if (from == to || count == 0) return;
  const auto bytes = static_cast<size_t>(count) * static_cast<size_t>(shape_.head_dim) * sizeof(float);
  for (int buffer = 0; buffer < shape_.layers * 2; ++buffer) {
    for (int head = 0; head < shape_.heads; ++head) std::memcpy(at(buffer, head, to), at(buffer, head, from), bytes);
  }
}

void KvCache::save(int position, int count, float* out) {
  const auto floats = static_cast<size_t>(count) * static_cast<size_t>(shape_.head_dim);
  for (int buffer = 0; buffer < shape_.layers * 2; ++buffer) {
    for (int head = 0; head < shape_.heads; ++head, out += floats) {
      std::memcpy(out, at(buffer, head, position), floats * sizeof(float));
    }
  }
}

void KvCache::load(int position, int first, int count, int saved, const float* from) {
  const auto width = static_cast<size_t>(shape_.head_dim);
  from += static_cast<size_t>(first) * width;
  for (int buffer = 0; buffer < shape_.layers * 2; ++buffer) {
    for (int head = 0; head < shape_.heads; ++head, from += static_cast<size_t>(saved) * width) {
      std::memcpy(at(buffer, head, position), from, static_cast<size_t>(count) * width * sizeof(float));
    }
  }
}

int32_t KvCache::place(int row, int position) const {
  const int64_t place = int64_t{row} * shape_.heads * shape_.capacity + position;
  if (place > INT32_MAX - shape_.capacity) throw std::bad_alloc();
  return static_cast<int32_t>(place);
}

size_t KvCache::floats_per_position() const { return product_of(shape_.layers * 2, shape_.heads, shape_.head_dim); }

Positions::Positions(int capacity, int most_runs) : capacity_(capacity) {
  free_.reserve(static_cast<size_t>(most_runs) + 1);
  if (capacity > 0) free_.push_back({0, capacity});
}

std::optional<int> Positions::take(int count) {
  if (count == 0) return 0;
  const auto run = std::find_if(free_.begin(), free_.end(), [count](const Run& one) { return one.count >= count; });
  if (run == free_.end()) return std::nullopt;
  const int start = run->start;
  run->start += count;
  run->count -= count;
  if (run->count == 0) free_.erase(run);
  taken_ += count;
  return start;
}

void Positions::give_back(int start, int count) {
  if (count == 0) return;
  taken_ -= count;
  auto next = std::find_if(free_.begin(), free_.end(), [start](const Run& one) { return one.start > start; });
  if (next != free_.end() && start + count == next->start) {
    next->start = start;
    next->count += count;
  } else {
    next = free_.insert(next, {start, count});
  }
  if (next == free_.begin()) return;
  const auto before = std::prev(next);
  if (before->start + before->count != next->start) return;
  before->count += next->count;
  free_.erase(next);
}

}  // namespace blip2rt
