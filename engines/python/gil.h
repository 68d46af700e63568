// Lets go of the GIL and takes it, also where the interpreter ends in between.
#pragma once

#include <Python.h>
#include <cxxabi.h>
#include <unistd.h>

namespace blip2rt {

// Calls f(), which waits for the GIL, as Python's own code does between its instructions. While the interpreter ends,
// it gives the GIL to nobody: Python then ends the thread, which unwinds its stack and so would end the process,
// because destructors let nothing through, or let go of a GIL that they do not have. Such a thread sleeps instead until
// the process is gone.
template <class F>
void while_python_lives(const F& f) noexcept {
#if defined(__GLIBCXX__)
  try {
    f();
  } catch (abi::__forced_unwind&) {
    for (;;) pause();
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
