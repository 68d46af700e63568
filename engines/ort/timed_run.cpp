#include "ort/timed_run.h"

#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "base/system.h"

namespace blip2rt {
namespace {

// One thread that terminates the runs of the process whose deadlines pass. It starts with the first of them, and sleeps
// until the earliest deadline.
class Watchdog {
 public:
  void watch(Deadline::Clock::time_point end, OrtRunOptions* run) {
    const std::lock_guard lock(mutex_);
    if (!started_) std::thread([this] { work(); }).detach();
    started_ = true;
    const auto added = runs_.emplace(end, run);
    if (added == runs_.begin() && end < wakes_) changed_.notify_one();
  }

  void forget(Deadline::Clock::time_point end, const OrtRunOptions* run) {
    const std::lock_guard lock(mutex_);
    const auto [first, last] = runs_.equal_range(end);
    for (auto entry = first; entry != last; ++entry) {
      if (entry->second == run) {
        runs_.erase(entry);
        return;
      }
    }
  }

 private:
  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      // Runs are short and deadlines far away: the thread wakes once for many of them.
      wakes_ = runs_.empty() ? Deadline::Clock::time_point::max() : runs_.begin()->first;
      if (runs_.empty()) {
        changed_.wait(lock);
      } else {
        changed_.wait_until(lock, wakes_);
      }
      const auto now = Deadline::Clock::now();
      while (!runs_.empty() && runs_.begin()->first <= now) {
        check(ort().RunOptionsSetTerminate(runs_.begin()->second));
        runs_.erase(runs_.begin());
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::multimap<Deadline::Clock::time_point, OrtRunOptions*> runs_;
  Deadline::Clock::time_point wakes_ = Deadline::Clock::time_point::max();
  bool started_ = false;
};

// A fork has no threads, so it gets a watchdog of its own. It is never destroyed: its thread runs until the end.
Watchdog& watchdog() {
  static std::mutex mutex;
  static Watchdog* made = nullptr;
  static int process = 0;
  const std::lock_guard lock(mutex);
  if (made == nullptr || process != process_id()) made = new Watchdog;
  process = process_id();
  return *made;
}

}  // namespace

TimedRun::TimedRun(double seconds) : deadline_(seconds) {
  OrtRunOptions* made = nullptr;
  blip2rt::check(ort().CreateRunOptions(&made));
  options_.reset(made);
  if (deadline_.is_set()) watchdog().watch(deadline_.end(), made);
}

TimedRun::~TimedRun() {
  if (deadline_.is_set()) watchdog().forget(deadline_.end(), options_.get());
}

void TimedRun::check(OrtStatus* status) const {
  try {
    blip2rt::check(status);
  } catch (const std::runtime_error&) {
    deadline_.check();
    throw;
  }
}

}  // namespace blip2rt
