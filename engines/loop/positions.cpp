// Keeps the free runs of a pool in order.
#include "loop/positions.h"

#include <algorithm>
#include <iterator>

namespace blip2rt {

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
