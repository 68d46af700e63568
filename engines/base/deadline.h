// When a run has to end.
#pragma once

#include <chrono>
#include <stdexcept>

namespace blip2rt {

struct RunTimeout : std::runtime_error {
  RunTimeout() : std::runtime_error("it ran out of time") {}
};

class Deadline {
 public:
  using Clock = std::chrono::steady_clock;

  // seconds 0: none.
  explicit Deadline(double seconds = 0) : is_set_(seconds > 0) {
    constexpr double kMostSeconds = 1e9;  // the clock counts nanoseconds in 64 bits
    const std::chrono::duration<double> left(seconds < kMostSeconds ? seconds : kMostSeconds);
    if (is_set_) end_ = Clock::now() + std::chrono::duration_cast<Clock::duration>(left);
  }

  bool is_set() const { return is_set_; }
  Clock::time_point end() const { return end_; }
  bool has_passed() const { return is_set_ && Clock::now() >= end_; }

  // Throws RunTimeout if it has passed.
  void check() const {
    if (has_passed()) throw RunTimeout();
  }

 private:
  bool is_set_;
  Clock::time_point end_;
};

}  // namespace blip2rt
