// Lends runs of positions of a cache: the lowest that are free and long enough. Knows numbers only.
#pragma once

#include <map>
#include <optional>

namespace blip2rt {

class Positions {
 public:
  explicit Positions(int capacity);

  // Returns where `count` free positions begin, and lends them; nothing where no free run is that long.
  std::optional<int> take(int count);

  // Gives back what take() lent.
  void give_back(int start, int count);

  int capacity() const { return capacity_; }
  int taken() const { return taken_; }

 private:
  int capacity_, taken_ = 0;
  std::map<int, int> free_;  // start -> count; no two of them touch
};

}  // namespace blip2rt
