// Lets the kernel take back what a graph has read of its mapped weights while ONNX Runtime loads it.
// Knows files and pages; nothing about graphs.
#pragma once

#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

namespace blip2rt {

// ONNX Runtime maps the files beside a graph and packs most weights into memory of its own, but keeps the
// maps of scales and zero points, which are never read again: a tenth of an int4 model. As long as this
// lives, and once more at its end, such pages leave the process; what is read later comes back from the
// file. Does nothing where there is no /proc.
class MappedWeights {
 public:
  explicit MappedWeights(const std::string& graph_path);
  ~MappedWeights();
  MappedWeights(const MappedWeights&) = delete;
  MappedWeights& operator=(const MappedWeights&) = delete;

 private:
  void watch();
  void give_back() const;

  std::string folder_;  // as the kernel names it, with the slash at its end; empty: nothing to do
  std::mutex mutex_;
  std::condition_variable wake_;
  bool loaded_ = false;
  std::thread watcher_;
};

}  // namespace blip2rt
