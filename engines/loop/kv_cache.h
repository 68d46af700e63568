// A key/value cache: one allocation, which the graph updates in place. Knows rows and positions; not which image or
// beam a row belongs to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "ort/ort_api.h"

namespace blip2rt {

struct CacheShape {
  int layers;
  int rows;  // the most rows that live together
  int heads;
  int capacity;  // positions
  int head_dim;
};

class KvCache {
 public:
  explicit KvCache(const CacheShape& shape);

  // Returns the first `rows` rows of one layer's keys (which = 0) or values (which = 1) as a tensor (rows, heads,
  // capacity, head_dim). Graphs read the number of rows off it, and our attention alone what lies in them: so it may
  // show more rows than there are.
  Value tensor(int layer, int which, int rows);

  // Copies positions [begin, end) of row `from` to row `to`, in every layer.
  void copy_row(int from, int to, int begin, int end);

  // Copies `count` positions of a row from position `from` on to position `to`, in every layer. They do not overlap.
  void copy_positions(int row, int from, int to, int count);

  // Copies `count` positions of a row from `position` on to `out` (layers * 2, heads, count,
  // head_dim).
  void save(int row, int position, int count, float* out);

  // Copies `count` positions, from number `first` on, of what save() wrote for `all` positions.
  void load(int row, int position, int first, int count, int all, const float* from);

  // Returns the place of a position, as CacheRow has it. Throws where the cache has more than an int can count.
  int32_t place(int row, int position) const;

  // Floats that a position takes in all layers.
  size_t floats_each() const;

  // Returns the address of a row in one buffer: 2 * layer for keys, 2 * layer + 1 for values.
  float* row_start(int buffer, int row);

  const CacheShape& shape() const { return shape_; }
  int rows() const { return shape_.rows; }
  int capacity() const { return shape_.capacity; }

 private:
  float* at(int buffer, int row, int head, int position);

  CacheShape shape_;
  size_t row_size_;     // floats
  size_t buffer_size_;  // floats
  // (layers * 2, rows, heads, capacity, head_dim). Left unset: pages that are never used are never touched.
  std::unique_ptr<void, void (*)(void*)> memory_;
};

}  // namespace blip2rt
