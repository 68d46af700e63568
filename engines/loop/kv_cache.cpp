// Allocates the key/value cache and copies positions of it.
#include "loop/kv_cache.h"

#include <algorithm>
#include <iterator>
#include <new>

namespace blip2rt {

KvCache::KvCache(const CacheShape& shape, Memory& memory)
    : shape_(shape),
      place_(memory),
      buffer_size_(product_of(shape.heads, shape.capacity, shape.head_dim, shape.rows, element_size(shape.dtype))),
      memory_(memory.allocate(product_of(buffer_size_, shape.layers, 2)),
              [&memory](void* address) { memory.release(address); }) {}

size_t KvCache::bytes_of(int count) const { return product_of(count, shape_.head_dim, element_size(shape_.dtype)); }

TensorView KvCache::tensor(int layer, int which, int rows, int first_row) const {
  return {at(layer * 2 + which, first_row * shape_.capacity),
          {rows, shape_.heads, shape_.capacity, shape_.head_dim},
          shape_.dtype};
}

// The first head of a position.
char* KvCache::at(int buffer, int position) const {
  const auto row = static_cast<size_t>(position / shape_.capacity) * static_cast<size_t>(shape_.heads);
  return static_cast<char*>(data()) + static_cast<size_t>(buffer) * buffer_size_ + row * bytes_of(shape_.capacity) +
         bytes_of(position % shape_.capacity);
}

BlockCopy::End KvCache::end_at(int position) const {
  return {at(0, position), bytes_of(shape_.capacity), buffer_size_, place_.on_host()};
}

void KvCache::copy_positions(int from, int to, int count) {
  if (from == to || count == 0) return;
  place_.copy({end_at(from), end_at(to), bytes_of(count), heads(), tensors()});
}

void KvCache::save(int position, int count, void* out) {
  const BlockCopy::End to = {static_cast<char*>(out), bytes_of(count), bytes_of(count) * heads(), true};
  place_.copy({end_at(position), to, bytes_of(count), heads(), tensors()});
}

void KvCache::load(int position, int first, int count, int saved, const void* from) {
  char* start = const_cast<char*>(static_cast<const char*>(from)) + bytes_of(first);
  const BlockCopy::End saved_end = {start, bytes_of(saved), bytes_of(saved) * heads(), true};
  place_.copy({saved_end, end_at(position), bytes_of(count), heads(), tensors()});
}

void KvCache::append(int position, int count, int rows, char* fresh, int first_row, size_t stride) {
  const BlockCopy::End from = {fresh + static_cast<size_t>(first_row) * heads() * bytes_of(count), bytes_of(count),
                               stride, place_.on_host()};
  place_.copy({from, end_at(position), bytes_of(count), heads() * static_cast<size_t>(rows), tensors()});
}

int32_t KvCache::place(int row, int position) const {
  const int64_t place = int64_t{row} * shape_.heads * shape_.capacity + position;
  if (place > INT32_MAX - shape_.capacity) throw std::bad_alloc();
  return static_cast<int32_t>(place);
}

size_t KvCache::bytes_per_position() const { return tensors() * heads() * bytes_of(1); }

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
