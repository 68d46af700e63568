// Threads that wait for work, first spinning, because the next operator follows within microseconds.
#include "executor/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>

#include "base/system.h"

namespace blip2rt {
namespace {

constexpr int kSpins = 2000;  // some 50 microseconds

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

class ThreadPool {
 public:
  void run(size_t parts, size_t threads, void (*work)(void*, size_t), void* data) {
    const std::unique_lock<std::mutex> only(busy_, std::try_to_lock);
    if (!only) {
      for (size_t part = 0; part < parts; ++part) work(data, part);
      return;
    }
    start(threads - 1);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      work_ = work;
      data_ = data;
      parts_ = parts;
      next_ = 0;
      seats_ = std::min(threads, parts) - 1;
      ++round_;
    }
    if (sleeping_ > 0) wake_.notify_all();
    take_parts();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      seats_ = 0;  // a thread that wakes too late finds no work
    }
    for (int spins = 0; working_ > 0; ++spins) {
      if (spins < kSpins) {
        pause();
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  // Starts threads until there are `count`, or the system has no more.
  void start(size_t count) {
    for (; count_ < count; ++count_) {
      try {
        std::thread([this] { wait_for_work(); }).detach();
      } catch (const std::system_error&) {
        return;
      }
    }
  }

  void take_parts() {
    for (size_t part = next_++; part < parts_; part = next_++) work_(data_, part);
  }

  [[noreturn]] void wait_for_work() {
    for (uint64_t seen = 0;;) {
      for (int spins = 0; spins < kSpins && round_ == seen; ++spins) pause();
      std::unique_lock<std::mutex> lock(mutex_);
      if (round_ == seen) {
        ++sleeping_;
        wake_.wait(lock, [&] { return round_ != seen; });
        --sleeping_;
      }
      seen = round_;
      if (seats_ == 0) continue;
      --seats_;
      ++working_;
      lock.unlock();
      take_parts();
      --working_;
    }
  }

  std::mutex busy_;   // held by the caller whose work it is
  std::mutex mutex_;  // of the job and the seats
  std::condition_variable wake_;
  std::atomic<uint64_t> round_{0};
  std::atomic<size_t> next_{0}, working_{0}, sleeping_{0};
  size_t parts_ = 0, seats_ = 0, count_ = 0;
  void (*work_)(void*, size_t) = nullptr;
  void* data_ = nullptr;
};

// A fork has no threads, so it gets a pool of its own. A pool is never destroyed: its threads use it until the end.
ThreadPool& pool() {
  static std::mutex mutex;
  static ThreadPool* made = nullptr;
  static int process = 0;
  const std::lock_guard<std::mutex> lock(mutex);
  if (made == nullptr || process != process_id()) made = new ThreadPool;
  process = process_id();
  return *made;
}

}  // namespace

void run_on_threads(size_t parts, size_t threads, void (*work)(void* data, size_t part), void* data) {
  if (parts > 1 && threads > 1) return pool().run(parts, threads, work, data);
  for (size_t part = 0; part < parts; ++part) work(data, part);
}

size_t default_threads() { return std::max<size_t>(1, std::thread::hardware_concurrency()); }

}  // namespace blip2rt
