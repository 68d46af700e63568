// The key/value cache of one generate call: one allocation, updated in place by the graph. Knows rows
// and positions; not which image or beam a row belongs to.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "ort_api.h"

namespace blip2rt {

struct CacheShape {
  int layers;
  int rows;  // most rows ever alive at once
  int heads;
  int capacity;  // positions
  int head_dim;
};

class KvCache {
 public:
  explicit KvCache(const CacheShape& shape);

  // The tensor (rows, heads, capacity, head_dim) of one layer's keys (which = 0) or values (which = 1):
  // the first `rows` rows.
  Value tensor(int layer, int which, int rows);

  // Copies positions [begin, end) of row `from` to row `to`, in every layer.
  void copy_row(int from, int to, int begin, int end);

  // Row first + i takes the positions [begin, end) which row first + parents[i] had before the call.
  // Rows that keep their place are not touched.
  void reorder(int first, const std::vector<int>& parents, int begin, int end);

 private:
  float* row_start(int buffer, int row);

  CacheShape shape_;
  size_t row_size_;     // floats
  size_t buffer_size_;  // floats
  // (layers * 2, rows + 1, heads, capacity, head_dim), left unset: pages never used are never touched.
  // The last row of each buffer is scratch for reorder.
  std::unique_ptr<float[]> memory_;
  std::vector<int> source_;   // of reorder: where each row still has to be copied from
  std::vector<int> readers_;  // of reorder: how many rows still have to be copied from each row
};

}  // namespace blip2rt
