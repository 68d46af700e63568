// A thread that steps the running batch as long as there are requests. Any thread may hand in requests, and read what
// comes of them through their mailbox. Knows threads and requests; not what a step does.
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
  // `generator` must outlive the batcher. Throws where the model's graphs cannot share steps.
  Batcher(const Generator& generator, const BatchSizes& sizes);

  // Ends as close() does.
  ~Batcher();
  Batcher(const Batcher&) = delete;
  Batcher& operator=(const Batcher&) = delete;

  // Takes requests whose tokens come to one mailbox. Throws where one of them makes no sense; then none is taken.
  std::vector<std::shared_ptr<Ticket>> submit(std::vector<Request> requests, const std::shared_ptr<Mailbox>& mailbox);

  // Fails all requests that have not ended, and ends the thread after the step that it is in.
  void close();

  // Returns whether this is a fork of the process that made it. The thread is not there, locks may be held, and what it
  // was changing is half changed: such a batcher is never destroyed.
  bool forked() const;

  BatchCounters counters() const;

  const Generator& generator() const { return generator_; }

 private:
  void work();

  const Generator& generator_;
  Batch batch_;  // the thread's alone, but for check()
  mutable std::mutex mutex_;
  std::condition_variable change_;
  std::vector<std::shared_ptr<Ticket>> fresh_;
  BatchCounters counters_;
  bool closed_ = false;
  std::once_flag joined_;
  const int process_;
  std::thread thread_;
};

}  // namespace blip2rt
