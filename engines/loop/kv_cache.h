// A key/value cache: one allocation, which the graph updates in place. Does not know which request a position belongs
// to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/tensor.h"

namespace blip2rt {

struct CacheShape {
  int layers;
  int rows;
  int heads;
  int capacity;  // positions of a row
  int head_dim;
};

class KvCache {
 public:
  explicit KvCache(const CacheShape& shape);

  // Returns one layer's keys (which = 0) or values (which = 1) as a tensor (rows, heads, capacity, head_dim). Our
  // attention reads the number of rows from the graph's other inputs, so the tensor may claim more rows than exist.
  TensorView tensor(int layer, int which, int rows);

  // Copies `count` positions of row 0 from position `from` to position `to`, in every layer. They must not overlap.
  void copy_positions(int from, int to, int count);

  // Copies `count` positions of row 0, starting at `position`, to `out` (layers * 2, heads, count, head_dim).
  void save(int position, int count, float* out);

  // Copies `count` positions, starting with number `first`, of `saved` positions that save() wrote.
  void load(int position, int first, int count, int saved, const float* from);

  // Returns where a position begins, as CacheRow counts. Throws std::bad_alloc if the number exceeds an int.
  int32_t place(int row, int position) const;

  // Floats that one position takes in all layers.
  size_t floats_per_position() const;

  float* data() { return static_cast<float*>(memory_.get()); }
  const CacheShape& shape() const { return shape_; }

 private:
  float* at(int buffer, int head, int position);

  CacheShape shape_;
  size_t row_size_;     // floats
  size_t buffer_size_;  // floats
  // (layers * 2, rows, heads, capacity, head_dim), uninitialized: pages that are never used are never touched.
  std::unique_ptr<void, void (*)(void*)> memory_;
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
