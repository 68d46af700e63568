// The driver that stands in (libcuda.c), with the kernels of engines/search/kernels.cu compiled for the CPU: what is
// launched is run, by one thread a block. A library of it, called libcuda.so.1, is a GPU without a GPU.
#include <stdint.h>
#include <stdlib.h>

#include "../../engines/native/kernels_cpu.cpp"

#define STAND_IN_RUNS_KERNELS
extern "C" {

struct Launch;
static int runs(const struct Launch* one);
static const struct {
  const char* name;
  int arguments;
} kKernels[] = {{"scatter", 12}, {"choose", 13}, {"reorder", 9}, {"spread", 6}};

#include "libcuda.c"
}

static int runs(const Launch* one) {
  void* arguments[kMostArguments];
  for (int i = 0; i < kMostArguments; ++i) arguments[i] = const_cast<uint64_t*>(&one->arguments[i]);
  return launch(one->kernel, one->x, one->y, 1, arguments) ? kSuccess : kNotFound;
}
