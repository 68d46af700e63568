// Ends ONNX Runtime's runs at their deadlines.
#pragma once

#include "base/deadline.h"
#include "ort/ort_api.h"

namespace blip2rt {

// The options of one run, which another thread terminates at its deadline. ONNX Runtime notices between two operators.
class TimedRun {
 public:
  // seconds 0: no deadline.
  explicit TimedRun(double seconds);
  ~TimedRun();
  TimedRun(const TimedRun&) = delete;
  TimedRun& operator=(const TimedRun&) = delete;

  OrtRunOptions* options() const { return options_.get(); }

  // Throws RunTimeout if the run failed and its deadline has passed, or else std::runtime_error as blip2rt::check does.
  void check(OrtStatus* status) const;

 private:
  RunOptions options_;
  Deadline deadline_;
};

}  // namespace blip2rt
