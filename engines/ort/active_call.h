// Delays exit() until no thread is inside ONNX Runtime, which destroys its own tables at exit: threads still running
// it, such as Python's daemon threads, would read freed memory.
#pragma once

namespace blip2rt {

// Marks the thread as inside ONNX Runtime while it lives. exit() waits for it with a timeout; a thread that arrives
// later sleeps until the process ends.
class ActiveCall {
 public:
  ActiveCall();
  ~ActiveCall();
  ActiveCall(const ActiveCall&) = delete;
  ActiveCall& operator=(const ActiveCall&) = delete;
};

// Makes exit() wait for active calls. Call it once, after ONNX Runtime was loaded: exit handlers run in reverse order
// of registration.
void wait_for_calls_at_exit();

}  // namespace blip2rt
