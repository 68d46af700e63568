// Moves rows of the key/value cache. Knows rows and positions only.
#include "loop/kv_cache.h"

#include <cstring>
#include <initializer_list>
#include <new>

namespace blip2rt {

namespace {

size_t product_of(std::initializer_list<int> sizes) {
  size_t product = 1;
  for (int size : sizes) {
    if (size < 0 || __builtin_mul_overflow(product, static_cast<size_t>(size), &product)) throw std::bad_alloc();
  }
  return product;
}

// Copies `height` pieces of `width` floats, which lie `pitch` floats apart on both sides.
void copy(float* to, const float* from, size_t pitch, size_t width, size_t height) {
  for (size_t i = 0; i < height; ++i) std::memcpy(to + i * pitch, from + i * pitch, width * sizeof(float));
}

}  // namespace

KvCache::KvCache(const CacheShape& shape)
    : shape_(shape),
      row_size_(product_of({shape.heads, shape.capacity, shape.head_dim})),
      buffer_size_(product_of({shape.heads, shape.capacity, shape.head_dim, shape.rows})),
      memory_(::operator new(product_of({shape.heads, shape.capacity, shape.head_dim, shape.rows, shape.layers,
                                         2 * static_cast<int>(sizeof(float))})),
              [](void* memory) { ::operator delete(memory); }) {}

float* KvCache::row_start(int buffer, int row) {
  return static_cast<float*>(memory_.get()) + static_cast<size_t>(buffer) * buffer_size_ +
         static_cast<size_t>(row) * row_size_;
}

Value KvCache::tensor(int layer, int which, int rows) {
  const size_t bytes = row_size_ * static_cast<size_t>(rows) * sizeof(float);
  return view(row_start(layer * 2 + which, 0), bytes, {rows, shape_.heads, shape_.capacity, shape_.head_dim},
              DType::kFloat32);
}

void KvCache::copy_row(int from, int to, int begin, int end) {
  if (from == to || begin == end) return;
  const auto head_size = static_cast<size_t>(shape_.capacity) * static_cast<size_t>(shape_.head_dim);
  const auto skip = static_cast<size_t>(begin) * static_cast<size_t>(shape_.head_dim);
  const auto count = static_cast<size_t>(end - begin) * static_cast<size_t>(shape_.head_dim);
  for (int buffer = 0; buffer < shape_.layers * 2; ++buffer) {
    copy(row_start(buffer, to) + skip, row_start(buffer, from) + skip, head_size, count,
         static_cast<size_t>(shape_.heads));
  }
}

float* KvCache::at(int buffer, int row, int head, int position) {
  const auto place = static_cast<size_t>(head) * static_cast<size_t>(shape_.capacity) + static_cast<size_t>(position);
  return row_start(buffer, row) + place * static_cast<size_t>(shape_.head_dim);
}

void KvCache::copy_positions(int row, int from, int to, int count) {
  if (from == to || count == 0) return;
  const auto pitch = static_cast<size_t>(shape_.capacity) * static_cast<size_t>(shape_.head_dim);
  const auto width = static_cast<size_t>(count) * static_cast<size_t>(shape_.head_dim);
  for (int buffer = 0; buffer < shape_.layers * 2; ++buffer) {
    copy(at(buffer, row, 0, to), at(buffer, row, 0, from), pitch, width, static_cast<size_t>(shape_.heads));
  }
}

void KvCache::save(int row, int position, int count, float* out) {
  const auto floats = static_cast<size_t>(count) * static_cast<size_t>(shape_.head_dim);
  for (int buffer = 0; buffer < shape_.layers * 2; ++buffer) {
    for (int head = 0; head < shape_.heads; ++head, out += floats) {
      std::memcpy(out, at(buffer, row, head, position), floats * sizeof(float));
    }
  }
}

void KvCache::load(int row, int position, int first, int count, int all, const float* from) {
  const auto width = static_cast<size_t>(shape_.head_dim);
  from += static_cast<size_t>(first) * width;
  for (int buffer = 0; buffer < shape_.layers * 2; ++buffer) {
    for (int head = 0; head < shape_.heads; ++head, from += static_cast<size_t>(all) * width) {
      std::memcpy(at(buffer, row, head, position), from, static_cast<size_t>(count) * width * sizeof(float));
    }
  }
}

int32_t KvCache::place(int row, int position) const {
  const int64_t place = int64_t{row} * shape_.heads * shape_.capacity + position;
  if (place > INT32_MAX - shape_.capacity) throw std::bad_alloc();
  return static_cast<int32_t>(place);
}

size_t KvCache::floats_each() const { return product_of({shape_.layers * 2, shape_.heads, shape_.head_dim}); }

}  // namespace blip2rt
