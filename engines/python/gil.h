// Releases and takes the GIL, also if the interpreter exits in between.
#pragma once

#include <Python.h>

namespace blip2rt {

// Calls work(argument), in which a thread may wait for the GIL. While the interpreter exits, no thread gets the GIL:
// Python before 3.14 ends the waiting thread, which would run destructors that are noexcept, or release a GIL that the
// thread does not hold. Such a thread sleeps until the process is gone.
void call_while_python_lives(void (*work)(void*), void* argument);

template <class F>
void while_python_lives(const F& f) {
  call_while_python_lives([](void* function) { (*static_cast<const F*>(function))(); }, const_cast<F*>(&f));
}

class ReleasedGil {
 public:
  ReleasedGil() : state_(PyEval_SaveThread()) {}
  ~ReleasedGil() {
    while_python_lives([this] { PyEval_RestoreThread(state_); });
  }
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;

 private:
  PyThreadState* state_;
};

class HeldGil {
 public:
  HeldGil() {
    while_python_lives([this] { state_ = PyGILState_Ensure(); });
  }
  ~HeldGil() { PyGILState_Release(state_); }
  HeldGil(const HeldGil&) = delete;
  HeldGil& operator=(const HeldGil&) = delete;

 private:
  PyGILState_STATE state_;
};

}  // namespace blip2rt
