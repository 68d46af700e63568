// What the end of the process waits for. ONNX Runtime takes its own tables down as the process exits: threads that
// still run it, as daemon threads of Python do, would read what is gone.
#pragma once

namespace blip2rt {

// A thread is in ONNX Runtime while one of these lives. exit() waits for it a while; a thread that comes later sleeps
// until the process is gone.
class ActiveCall {
 public:
  ActiveCall();
  ~ActiveCall();
  ActiveCall(const ActiveCall&) = delete;
  ActiveCall& operator=(const ActiveCall&) = delete;
};

// Lets exit() wait for calls. Called once, when ONNX Runtime has been loaded: what is registered later is done earlier.
void wait_for_calls_at_exit();

}  // namespace blip2rt
