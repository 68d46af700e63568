// Lets go of the GIL and takes it, also where the interpreter ends in between.
#pragma once

#include <Python.h>
#include <cxxabi.h>
#include <unistd.h>

namespace blip2rt {

// Calls take(), which waits for the GIL. While the interpreter ends, it gives the GIL to nobody: Python then ends the
// thread, which unwinds its stack and so would end the process, because destructors let nothing through. Such a thread
// sleeps instead until the process is gone.
template <class F>
void take_gil(const F& take) noexcept {
#if defined(__GLIBCXX__)
  try {
    take();
  } catch (abi::__forced_unwind&) {
    for (;;) pause();
  }
#else
  take();
#endif
}

class ReleasedGil {
 public:
  ReleasedGil() : state_(PyEval_SaveThread()) {}
  ~ReleasedGil() {
    take_gil([this] { PyEval_RestoreThread(state_); });
  }
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;

 private:
  PyThreadState* state_;
};

class HeldGil {
 public:
  HeldGil() {
    take_gil([this] { state_ = PyGILState_Ensure(); });
  }
  ~HeldGil() { PyGILState_Release(state_); }
  HeldGil(const HeldGil&) = delete;
  HeldGil& operator=(const HeldGil&) = delete;

 private:
  PyGILState_STATE state_;
};

}  // namespace blip2rt
