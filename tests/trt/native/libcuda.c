// A driver that stands in for NVIDIA's: the calls that blip2rt.backends.trt makes, on the host's memory. Work is done when
// it is asked for. A kernel that is launched while a stream is captured is written down, and run when the graph is
// launched. Here kernels are counted; libcuda_kernels.cpp runs those of engines/search/kernels.cu.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
enum { kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kNotFound = 500, kNotSupported = 801 };

enum { kMostArguments = 16, kMostNodes = 4096 };
typedef struct Launch {
  const char* kernel;
  unsigned x, y, threads;
  uint64_t arguments[kMostArguments];
} Launch;
typedef struct {
  int count;
  Launch nodes[];
} Graph;

static int capturing, recorded, launched;
static Launch nodes[kMostNodes];  // of the stream that is captured
static int alive;  // allocations, streams, events, graphs, executables and modules

static Result made(void** into) { return *into = calloc(1, 64), ++alive, kSuccess; }
static Result gone(void* handle) {
  if (handle == NULL || alive == 0) return kInvalidValue;
  return --alive, free(handle), kSuccess;
}

Result cuInit(unsigned flags) { return flags == 0 ? kSuccess : kInvalidValue; }
// NVRTC looks for a driver, and reads a table of it that says here how short it is.
Result cuGetExportTable(const void** table, const void* id) {
  static const uint64_t kNothing[8] = {8};
  (void)id;
  return *table = kNothing, kSuccess;
}
Result cuDriverGetVersion(int* version) { return *version = 13010, kSuccess; }
Result cuGetErrorName(Result error, const char** name) { return *name = error ? "AN_ERROR" : "SUCCESS", kSuccess; }
Result cuGetErrorString(Result error, const char** text) { return cuGetErrorName(error, text); }
Result cuDeviceGet(int* device, int ordinal) { return *device = ordinal, kSuccess; }
Result cuDeviceGetName(char* name, int size, int device) {
  strncpy(name, "stand-in of a GPU", (size_t)size);
  return (Result)device;
}
Result cuDeviceTotalMem_v2(size_t* bytes, int device) { return *bytes = (size_t)1 << 30, (Result)device; }
Result cuDeviceGetAttribute(int* value, int attribute, int device) {
  // Compute capability 8.7; multiprocessors; memory of its own.
  *value = attribute == 75 ? 8 : attribute == 76 ? 7 : attribute == 16 ? 1 : attribute == 18 ? 0 : -1;
  return device == 0 && *value >= 0 ? kSuccess : kInvalidValue;
}
Result cuDevicePrimaryCtxRetain(void** context, int device) { return *context = (void*)0x10, (Result)device; }
Result cuCtxSetCurrent(void* context) { return context == (void*)0x10 ? kSuccess : kInvalidValue; }

Result cuMemAlloc_v2(uintptr_t* address, size_t size) {
  if (size > (size_t)1 << 40) return kOutOfMemory;
  ++alive;
  return *address = (uintptr_t)aligned_alloc(256, (size + 255) / 256 * 256), kSuccess;
}
Result cuMemFree_v2(uintptr_t address) { return gone((void*)address); }
Result cuMemAllocHost_v2(void** address, size_t size) { return ++alive, *address = malloc(size), kSuccess; }
Result cuMemFreeHost(void* address) { return gone(address); }
Result cuMemsetD32Async(uintptr_t address, unsigned word, size_t count, void* stream) {
  for (size_t i = 0; i < count; ++i) ((unsigned*)address)[i] = word;
  return stream ? kSuccess : kInvalidValue;
}
Result cuMemcpyHtoDAsync_v2(uintptr_t to, const void* from, size_t size, void* stream) {
  return memcpy((void*)to, from, size), stream ? kSuccess : kInvalidValue;
}
Result cuMemcpyDtoHAsync_v2(void* to, uintptr_t from, size_t size, void* stream) {
  return memcpy(to, (void*)from, size), stream ? kSuccess : kInvalidValue;
}
Result cuMemcpyDtoDAsync_v2(uintptr_t to, uintptr_t from, size_t size, void* stream) {
  return memcpy((void*)to, (void*)from, size), stream ? kSuccess : kInvalidValue;
}

Result cuStreamCreate(void** stream, unsigned flags) { return flags == 1 ? made(stream) : kInvalidValue; }
Result cuStreamSynchronize(void* stream) { return stream ? kSuccess : kInvalidValue; }
Result cuStreamDestroy_v2(void* stream) { return gone(stream); }
Result cuEventCreate(void** event, unsigned flags) { return flags == 2 ? made(event) : kInvalidValue; }
Result cuEventRecord(void* event, void* stream) { return event && stream ? kSuccess : kInvalidValue; }
Result cuEventSynchronize(void* event) { return event ? kSuccess : kInvalidValue; }
Result cuEventDestroy_v2(void* event) { return gone(event); }

Result cuStreamBeginCapture_v2(void* stream, int mode) {
  if (stream == NULL || mode != 1) return kInvalidValue;
  capturing = 1, recorded = 0;
  return kSuccess;
}
Result cuStreamEndCapture(void* stream, void** graph) {
  if (!capturing || stream == NULL) return kInvalidValue;
  capturing = 0;
  Graph* made_of = (Graph*)malloc(sizeof(Graph) + (size_t)recorded * sizeof(Launch));
  made_of->count = recorded;
  memcpy(made_of->nodes, nodes, (size_t)recorded * sizeof(Launch));
  ++alive;
  return *graph = made_of, kSuccess;
}
Result cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long flags) {
  if (graph == NULL || flags != 0) return kInvalidValue;
  const size_t size = sizeof(Graph) + (size_t)((Graph*)graph)->count * sizeof(Launch);
  ++alive;
  return *executable = memcpy(malloc(size), graph, size), kSuccess;
}
Result cuGraphDestroy(void* graph) { return gone(graph); }
Result cuGraphExecDestroy(void* executable) { return gone(executable); }

#ifndef STAND_IN_RUNS_KERNELS
static const struct {
  const char* name;
  int arguments;
} kKernels[] = {{"kernel", 2}};

static Result runs(const Launch* one) {
  float second;
  memcpy(&second, &one->arguments[1], sizeof second);
  if (one->x != 3 || one->y != 2 || one->threads != 64) return kInvalidValue;
  return (int)one->arguments[0] == 7 && second == 0.5f ? kSuccess : kInvalidValue;
}
#endif
enum { kKernelCount = sizeof kKernels / sizeof kKernels[0] };

static Result run_one(const Launch* one) {
  ++launched;
  return runs(one);
}
Result cuGraphLaunch(void* executable, void* stream) {
  if (executable == NULL || stream == NULL) return kInvalidValue;
  for (int i = 0; i < ((Graph*)executable)->count; ++i) {
    const Result failed = run_one(&((Graph*)executable)->nodes[i]);
    if (failed) return failed;
  }
  return kSuccess;
}

Result cuModuleLoadData(void** module, const void* image) { return image ? made(module) : kInvalidValue; }
Result cuModuleUnload(void* module) { return gone(module); }
Result cuModuleGetFunction(void** function, void* module, const char* name) {
  for (int i = 0; module && i < kKernelCount; ++i) {
    if (strcmp(name, kKernels[i].name) == 0) return *function = (void*)&kKernels[i], kSuccess;
  }
  return kNotFound;
}
Result cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, void* stream, void** arguments, void** extra) {
  const uintptr_t index = ((uintptr_t)function - (uintptr_t)kKernels) / sizeof kKernels[0];
  if (index >= kKernelCount || gz != 1 || by != 1 || bz != 1 || shared != 0 || stream == NULL || extra != NULL) {
    return kInvalidValue;
  }
  Launch one = {kKernels[index].name, gx, gy, bx, {0}};
  // ctypes has room for 8 bytes in every value; a kernel reads as many as its parameter has.
  for (int i = 0; i < kKernels[index].arguments; ++i) memcpy(&one.arguments[i], arguments[i], 8);
  if (!capturing) return run_one(&one);
  if (recorded == kMostNodes) return kOutOfMemory;
  nodes[recorded++] = one;
  return kSuccess;
}

int standInLaunched(void) { return launched; }
int standInAlive(void) { return alive; }

// How cuda-bindings finds every entry, this one too: by the name without its version.
Result cuGetProcAddress_v2(const char* name, void** function, int version, uint64_t flags, int* status) {
  (void)version, (void)flags;
  if (status != NULL) *status = 0;
  const char* kForms[] = {"%s_v2", "%s", "%sWithFlags"};
  void* own = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
  *function = NULL;
  for (int i = 0; i < 3 && *function == NULL; ++i) {
    char entry[128];
    snprintf(entry, sizeof entry, kForms[i], name);
    *function = dlsym(own, entry);
  }
  return *function ? kSuccess : kNotFound;
}
Result cuGetProcAddress(const char* name, void** function, int version, uint64_t flags) {
  return cuGetProcAddress_v2(name, function, version, flags, NULL);
}
