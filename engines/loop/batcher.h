// A thread that steps a batch while there are requests. Any thread may submit requests, and reads their tokens from a
// queue.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "loop/batch.h"
#include "loop/request.h"

namespace blip2rt {

class Batcher {
 public:
  // `generator` must outlive the batcher.
  Batcher(const Generator& generator, const BatchSizes& sizes);

  ~Batcher();  // as close()
  Batcher(const Batcher&) = delete;
  Batcher& operator=(const Batcher&) = delete;

  // Submits requests whose tokens go to one queue. Throws if one of them never fits the batch; then none is submitted.
  Tickets submit(std::vector<Request> requests, const std::shared_ptr<TokenQueue>& queue);

  // Fails all unfinished requests, and ends the thread after its current step.
  void close();

  // Returns whether this is a fork of the process that made it. The thread does not exist here, locks may be held, and
  // data may be half changed: such a batcher must never be destroyed.
  bool forked() const;

  BatchCounters counters() const;

  const Generator& generator() const { return generator_; }

 private:
  void work();

  const Generator& generator_;
  Batch batch_;  // used by the thread only, except for check()
  mutable std::mutex mutex_;
  std::condition_variable change_;
  Tickets submitted_;  // not yet in the batch
  BatchCounters counters_;
  bool closed_ = false;
  std::mutex joining_;
  const int process_;
  std::thread thread_;
};

}  // namespace blip2rt
