// Counts the threads inside ONNX Runtime, and waits for them before exit.
#include "ort/active_call.h"

#include <atomic>
#include <chrono>
#include <thread>

#include "base/system.h"

namespace blip2rt {
namespace {

std::atomic<int> threads{0};
std::atomic<bool> ending{false};
thread_local int depth = 0;   // nested calls belong to the same thread
std::atomic<int> process{0};  // threads do not survive a fork

}  // namespace

ActiveCall::ActiveCall() {
  if (depth++ > 0) return;
  ++threads;
  if (!ending || process_id() != process) return;
  --threads;
  sleep_until_exit();
}

ActiveCall::~ActiveCall() {
  if (--depth == 0) --threads;
}

void start_counting_calls() { process = process_id(); }

void wait_for_calls() {
  constexpr std::chrono::seconds kLongest(60);  // generous, for a busy machine
  if (process_id() != process) return;
  ending = true;
  const auto end = std::chrono::steady_clock::now() + kLongest;
  const int own = depth > 0 ? 1 : 0;  // exit() within a call
  while (threads > own && std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace blip2rt
