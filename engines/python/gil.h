// Releases and takes the GIL, also if the interpreter exits in between.
#pragma once

#include <Python.h>
#include <cxxabi.h>

#include "ort/system.h"

namespace blip2rt {

// Calls f(), which waits for the GIL, as Python's own code does between its instructions. While the interpreter exits,
// no thread gets the GIL: Python ends the waiting thread by unwinding its stack. That would end the process, because
// destructors are noexcept, or release a GIL that they do not hold. Such a thread sleeps until the process is gone.
template <class F>
void while_python_lives(const F& f) noexcept {
#if defined(__GLIBCXX__)
  try {
    f();
  } catch (abi::__forced_unwind&) {
    sleep_until_exit();
  }
#else
  f();
#endif
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
