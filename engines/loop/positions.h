// Allocates runs of positions of a pool: the lowest free run that is long enough.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

namespace blip2rt {

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
