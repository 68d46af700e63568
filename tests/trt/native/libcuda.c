// A driver for the tests of blip2rt.backends.trt.cuda: the calls that it makes, on the host's memory. What is launched
// while a stream is captured is counted and not run; launching the graph counts it.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
enum { kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kNotFound = 500, kNotSupported = 801 };

static int capturing, captured, launched;
static int counts[8];  // handles that are alive: memory, host memory, streams, events, graphs, executables, modules
enum { kMemory, kHost, kStreams, kEvents, kGraphs, kExecutables, kModules };

static Result made(int kind, void** into) {
  *into = calloc(1, 64);
  ++counts[kind];
  return kSuccess;
}
static Result gone(int kind, void* handle) {
  if (handle == NULL || counts[kind] == 0) return kInvalidValue;
  --counts[kind];
  free(handle);
  return kSuccess;
}

Result cuInit(unsigned flags) { return flags == 0 ? kSuccess : kInvalidValue; }
Result cuDriverGetVersion(int* version) { return *version = 13010, kSuccess; }
Result cuGetErrorName(Result error, const char** name) { return *name = error ? "AN_ERROR" : "SUCCESS", kSuccess; }
Result cuGetErrorString(Result error, const char** text) { return cuGetErrorName(error, text); }
Result cuDeviceGet(int* device, int ordinal) { return *device = ordinal, kSuccess; }
Result cuDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == 75 ? 8 : attribute == 76 ? 7 : -1;
  return device == 0 && *value > 0 ? kSuccess : kInvalidValue;
}
Result cuDevicePrimaryCtxRetain(void** context, int device) { return *context = (void*)0x10, (Result)device; }
Result cuCtxSetCurrent(void* context) { return context == (void*)0x10 ? kSuccess : kInvalidValue; }

Result cuMemAlloc_v2(uintptr_t* address, size_t size) {
  if (size > (size_t)1 << 40) return kOutOfMemory;
  ++counts[kMemory];
  return *address = (uintptr_t)malloc(size), kSuccess;
}
Result cuMemFree_v2(uintptr_t address) { return gone(kMemory, (void*)address); }
Result cuMemAllocHost_v2(void** address, size_t size) { return ++counts[kHost], *address = malloc(size), kSuccess; }
Result cuMemFreeHost(void* address) { return gone(kHost, address); }
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

Result cuStreamCreate(void** stream, unsigned flags) { return flags == 1 ? made(kStreams, stream) : kInvalidValue; }
Result cuStreamSynchronize(void* stream) { return stream ? kSuccess : kInvalidValue; }
Result cuStreamDestroy_v2(void* stream) { return gone(kStreams, stream); }
Result cuEventCreate(void** event, unsigned flags) { return flags == 2 ? made(kEvents, event) : kInvalidValue; }
Result cuEventRecord(void* event, void* stream) { return event && stream ? kSuccess : kInvalidValue; }
Result cuEventSynchronize(void* event) { return event ? kSuccess : kInvalidValue; }
Result cuEventDestroy_v2(void* event) { return gone(kEvents, event); }

Result cuStreamBeginCapture_v2(void* stream, int mode) {
  if (stream == NULL || mode != 1) return kInvalidValue;
  capturing = 1, captured = 0;
  return kSuccess;
}
Result cuStreamEndCapture(void* stream, void** graph) {
  if (!capturing || stream == NULL) return kInvalidValue;
  capturing = 0;
  return made(kGraphs, graph);
}
Result cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long flags) {
  return graph && flags == 0 ? made(kExecutables, executable) : kInvalidValue;
}
Result cuGraphDestroy(void* graph) { return gone(kGraphs, graph); }
Result cuGraphLaunch(void* executable, void* stream) {
  launched += captured;
  return executable && stream ? kSuccess : kInvalidValue;
}
Result cuGraphExecDestroy(void* executable) { return gone(kExecutables, executable); }

Result cuModuleLoadData(void** module, const void* image) { return image ? made(kModules, module) : kInvalidValue; }
Result cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = (void*)0x20;
  return module && strcmp(name, "kernel") == 0 ? kSuccess : kNotFound;
}
Result cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, void* stream, void** arguments, void** extra) {
  if (function != (void*)0x20 || gx != 3 || gy != 2 || gz != 1 || bx != 64 || by != 1 || bz != 1 || shared != 0 ||
      stream == NULL || extra != NULL || *(int*)arguments[0] != 7 || *(float*)arguments[1] != 0.5f) {
    return kInvalidValue;
  }
  ++*(capturing ? &captured : &launched);
  return kSuccess;
}

int standInLaunched(void) { return launched; }
int standInAlive(void) {
  int alive = 0;
  for (int kind = 0; kind < kModules; ++kind) alive += counts[kind];
  return alive;
}

static const struct {
  const char* name;
  void* function;
} kEntries[] = {
#define ENTRY(name) {#name, (void*)name}
#define ENTRY_V2(name) {#name, (void*)name##_v2}
    ENTRY(cuInit), ENTRY(cuDriverGetVersion), ENTRY(cuGetErrorName), ENTRY(cuGetErrorString), ENTRY(cuDeviceGet),
    ENTRY(cuDeviceGetAttribute), ENTRY(cuDevicePrimaryCtxRetain), ENTRY(cuCtxSetCurrent), ENTRY_V2(cuMemAlloc),
    ENTRY_V2(cuMemFree), ENTRY_V2(cuMemAllocHost), ENTRY(cuMemFreeHost), ENTRY(cuMemsetD32Async),
    ENTRY_V2(cuMemcpyHtoDAsync), ENTRY_V2(cuMemcpyDtoHAsync), ENTRY(cuStreamCreate), ENTRY(cuStreamSynchronize),
    ENTRY_V2(cuStreamDestroy), ENTRY(cuEventCreate), ENTRY(cuEventRecord), ENTRY(cuEventSynchronize),
    ENTRY_V2(cuEventDestroy), ENTRY_V2(cuStreamBeginCapture), ENTRY(cuStreamEndCapture),
    {"cuGraphInstantiate", (void*)cuGraphInstantiateWithFlags}, ENTRY(cuGraphInstantiateWithFlags),
    ENTRY(cuGraphDestroy), ENTRY(cuGraphLaunch), ENTRY(cuGraphExecDestroy), ENTRY(cuModuleLoadData),
    ENTRY(cuModuleGetFunction), ENTRY(cuLaunchKernel),
};

// How cuda-bindings finds every entry, this one too.
Result cuGetProcAddress_v2(const char* name, void** function, int version, uint64_t flags, int* status) {
  (void)version, (void)flags;
  if (status != NULL) *status = 0;
  if (strcmp(name, "cuGetProcAddress") == 0) return *function = (void*)cuGetProcAddress_v2, kSuccess;
  for (size_t i = 0; i < sizeof kEntries / sizeof kEntries[0]; ++i) {
    if (strcmp(kEntries[i].name, name) == 0) return *function = kEntries[i].function, kSuccess;
  }
  *function = NULL;
  return kNotFound;
}
Result cuGetProcAddress(const char* name, void** function, int version, uint64_t flags) {
  return cuGetProcAddress_v2(name, function, version, flags, NULL);
}
