// A key/value cache: one allocation of a graph's memory. Does not know which request a position belongs to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "base/memory.h"
#include "base/tensor.h"

namespace blip2rt {

struct CacheShape {
  int layers;
  int rows;
  int heads;
  int capacity;  // positions of a row
  int head_dim;
  DType dtype = DType::kFloat32;
};

class KvCache {
 public:
  // `memory` must outlive the cache.
  explicit KvCache(const CacheShape& shape, Memory& memory = host_memory());

  // Returns one layer's keys (which = 0) or values (which = 1) as a tensor (rows, heads, capacity, head_dim) that
  // begins with `first_row`. Our attention reads the number of rows from the graph's other inputs, so the tensor may
  // claim more rows than exist.
  TensorView tensor(int layer, int which, int rows, int first_row = 0) const;

  // Positions are counted through all rows: row * capacity + position.

  // Copies `count` positions from `from` to `to`, in every layer. They must not overlap.
  void copy_positions(int from, int to, int count);

  // Copies `count` positions to `out` (layers * 2, heads, count, head_dim).
  void save(int position, int count, void* out);

  // Copies `count` positions, starting with number `first`, of `saved` positions that save() wrote.
  void load(int position, int first, int count, int saved, const void* from);

  // Copies what a graph has computed in this cache's memory: `count` positions for each of `rows` rows, from number
  // `first_row` of `fresh` on, whose tensors are `stride` bytes apart, to `position` and the same place in later rows.
  void append(int position, int count, int rows, char* fresh, int first_row, size_t stride);

  // Returns where a position begins, as CacheRow counts. Throws std::bad_alloc if the number exceeds an int.
  int32_t place(int row, int position) const;

  // Bytes that one position takes in all layers.
  size_t bytes_per_position() const;
  size_t bytes_per_row() const { return heads() * bytes_of(shape_.capacity); }  // of one tensor

  void* data() const { return memory_.get(); }
  const CacheShape& shape() const { return shape_; }

 private:
  char* at(int buffer, int position) const;
  BlockCopy::End end_at(int position) const;
  size_t bytes_of(int count) const;  // of a head's positions
  size_t heads() const { return static_cast<size_t>(shape_.heads); }
  size_t tensors() const { return static_cast<size_t>(shape_.layers) * 2; }

  CacheShape shape_;
  Memory& place_;
  size_t buffer_size_;  // bytes
  // (layers * 2, rows, heads, capacity, head_dim). The host's is uninitialized: pages that are never used are never
  // touched.
  std::unique_ptr<void, std::function<void(void*)>> memory_;
};

// Allocates runs of positions of a pool: the lowest free run that is long enough.
class Positions {
 public:
  // `most_runs`: how many runs are taken at the same time, at most.
  Positions(int capacity, int most_runs);

  // Returns where `count` free positions begin, and takes them. Returns nothing if no free run is that long.
  std::optional<int> take(int count);

  // Frees positions that take() returned. Allocates nothing.
  void give_back(int start, int count);

  int capacity() const { return capacity_; }
  int taken() const { return taken_; }

 private:
  struct Run {
    int start, count;
  };

  int capacity_, taken_ = 0;
  std::vector<Run> free_;  // by start; no two of them touch
};

}  // namespace blip2rt
