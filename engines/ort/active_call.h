// Delays exit() until no thread is inside ONNX Runtime, which destroys its own tables at exit: threads still running
// it, such as Python's daemon threads, would read freed memory. So would they read the core's static objects.
#pragma once

namespace blip2rt {

// Marks the thread as inside ONNX Runtime while it lives.
class ActiveCall {
 public:
  ActiveCall();
  ~ActiveCall();
  ActiveCall(const ActiveCall&) = delete;
  ActiveCall& operator=(const ActiveCall&) = delete;
};

// Marks this process, not its forks, as the one whose calls are counted. Call it once ONNX Runtime is loaded.
void start_counting_calls();

// Waits for active calls, with a timeout; a thread that arrives later sleeps until the process ends. Call it before
// exit(), as Python's finalization does. As an exit handler it would be too late: exit() first destroys the static
// objects that were created after the handler was registered, and each operator's first call may create some.
void wait_for_calls();

}  // namespace blip2rt
