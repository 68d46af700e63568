// Keeps the free runs of a cache in order.
#include "loop/positions.h"

#include <cassert>
#include <iterator>

namespace blip2rt {

Positions::Positions(int capacity) : capacity_(capacity) {
  if (capacity > 0) free_[0] = capacity;
}

std::optional<int> Positions::take(int count) {
  if (count == 0) return 0;
  for (auto run = free_.begin(); run != free_.end(); ++run) {
    const auto [start, length] = *run;
    if (length < count) continue;
    free_.erase(run);
    if (length > count) free_[start + count] = length - count;
    taken_ += count;
    return start;
  }
  return std::nullopt;
}

void Positions::give_back(int start, int count) {
  if (count == 0) return;
  taken_ -= count;
  const auto [added, fresh] = free_.emplace(start, count);
  assert(fresh);
  (void)fresh;
  const auto next = std::next(added);
  if (next != free_.end() && start + count == next->first) {
    added->second += next->second;
    free_.erase(next);
  }
  if (added == free_.begin()) return;
  const auto before = std::prev(added);
  if (before->first + before->second != start) return;
  before->second += added->second;
  free_.erase(added);
}

}  // namespace blip2rt
