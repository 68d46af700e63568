// Moves rows of the key/value cache. Knows rows and positions only.
#include "kv_cache.h"

#include <cstring>

namespace blip2rt {

KvCache::KvCache(const CacheShape& shape)
    : shape_(shape),
      row_size_(static_cast<size_t>(shape.heads) * static_cast<size_t>(shape.capacity) *
                static_cast<size_t>(shape.head_dim)),
      buffer_size_(row_size_ * static_cast<size_t>(shape.rows)),
      memory_(new float[buffer_size_ * static_cast<size_t>(shape.layers) * 2]) {}

float* KvCache::row_start(int buffer, int row) {
  return memory_.get() + static_cast<size_t>(buffer) * buffer_size_ + static_cast<size_t>(row) * row_size_;
}

Value KvCache::tensor(int layer, int which, int rows) {
  return view(row_start(layer * 2 + which, 0), {rows, shape_.heads, shape_.capacity, shape_.head_dim});
}

void KvCache::copy_row(int from, int to, int begin, int end) {
  if (from == to || begin == end) return;
  const auto head_size = static_cast<size_t>(shape_.capacity) * static_cast<size_t>(shape_.head_dim);
  const auto skip = static_cast<size_t>(begin) * static_cast<size_t>(shape_.head_dim);
  const auto count = static_cast<size_t>(end - begin) * static_cast<size_t>(shape_.head_dim);
  for (int buffer = 0; buffer < shape_.layers * 2; ++buffer) {
    const float* source = row_start(buffer, from) + skip;
    float* target = row_start(buffer, to) + skip;
    for (int head = 0; head < shape_.heads; ++head) {
      std::memcpy(target, source, count * sizeof(float));
      source += head_size;
      target += head_size;
    }
  }
}

}  // namespace blip2rt
