// Counts the threads that are in ONNX Runtime.
#include "ort/active_call.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <thread>

namespace blip2rt {
namespace {

std::atomic<int> threads{0};
std::atomic<bool> ending{false};
thread_local int depth = 0;  // a call within a call is the same thread's
pid_t process = 0;           // threads are not in a fork of it

void wait_for_threads() {
  constexpr std::chrono::seconds kLongest(60);  // a busy machine may let a thread wait
  if (getpid() != process) return;
  ending = true;
  const auto end = std::chrono::steady_clock::now() + kLongest;
  const int own = depth > 0 ? 1 : 0;  // exit() within a call
  while (threads > own && std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace

ActiveCall::ActiveCall() {
  if (depth++ > 0) return;
  ++threads;
  if (!ending || getpid() != process) return;
  --threads;
  for (;;) pause();
}

ActiveCall::~ActiveCall() {
  if (--depth == 0) --threads;
}

void wait_for_calls_at_exit() {
  process = getpid();
  std::atexit(wait_for_threads);
}

}  // namespace blip2rt
