// Allocates and copies on the host, and on a GPU through a few entries of the CUDA runtime. ONNX Runtime's CUDA
// provider has loaded that library, and shares its primary context.
#include "ort/tensor_memory.h"

#include <dlfcn.h>

#include <cstring>
#include <stdexcept>

namespace blip2rt {
namespace {

class HostMemory : public TensorMemory {
 public:
  std::shared_ptr<void> allocate(size_t bytes) const override {
    return std::shared_ptr<void>(::operator new(bytes), [](void* p) { ::operator delete(p); });
  }
  void copy(void* to, const void* from, size_t pitch, size_t width, size_t height) const override {
    for (size_t i = 0; i < height; ++i) {
      std::memcpy(static_cast<char*>(to) + i * pitch, static_cast<const char*>(from) + i * pitch, width);
    }
  }
  void finish() const override {}
  const OrtMemoryInfo* info() const override { return nullptr; }
};

constexpr int kDeviceToDevice = 3;  // cudaMemcpyKind

struct CudaEntries {
  int (*malloc)(void**, size_t);
  int (*free)(void*);
  int (*copy)(void*, size_t, const void*, size_t, size_t, size_t, int);
  int (*synchronize)();
  const char* (*error)(int);
};

class CudaMemory : public TensorMemory {
 public:
  explicit CudaMemory(const std::string& path) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) throw std::runtime_error("cannot load the CUDA runtime: " + std::string(dlerror()));
    find(library, "cudaMalloc", entries_.malloc);
    find(library, "cudaFree", entries_.free);
    find(library, "cudaMemcpy2D", entries_.copy);
    find(library, "cudaDeviceSynchronize", entries_.synchronize);
    find(library, "cudaGetErrorString", entries_.error);
  }

  std::shared_ptr<void> allocate(size_t bytes) const override {
    void* memory = nullptr;
    check(entries_.malloc(&memory, bytes), "no room for " + std::to_string(bytes / 1000000) + " MB of keys and values");
    return std::shared_ptr<void>(memory, entries_.free);
  }
  void copy(void* to, const void* from, size_t pitch, size_t width, size_t height) const override {
    check(entries_.copy(to, pitch, from, pitch, width, height, kDeviceToDevice), "a copy of keys and values failed");
  }
  void finish() const override {  // copies within the device return before they are done
    check(entries_.synchronize(), "copies of keys and values failed");
  }
  const OrtMemoryInfo* info() const override { return cuda_memory_info(); }

 private:
  template <class Function>
  static void find(void* library, const char* name, Function& entry) {
    entry = reinterpret_cast<Function>(dlsym(library, name));
    if (entry == nullptr) throw std::runtime_error("the CUDA runtime has no " + std::string(name));
  }
  void check(int error, const std::string& what) const {
    if (error != 0) throw std::runtime_error("GPU: " + what + ": " + entries_.error(error));
  }

  CudaEntries entries_;
};

std::string cudart_name() {
  const char* names[] = {"libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0"};
  for (const char* name : names) {
    if (dlopen(name, RTLD_NOW | RTLD_NOLOAD) != nullptr) return name;
  }
  return names[1];
}

}  // namespace

// Neither is ever destroyed: threads may still use them as the process exits.
const TensorMemory& host_memory() {
  static const TensorMemory& memory = *new HostMemory;
  return memory;
}

const TensorMemory& cuda_memory() {
  static const TensorMemory& memory = *new CudaMemory(cudart_name());
  return memory;
}

std::unique_ptr<TensorMemory> open_cuda_memory(const std::string& library) {
  return std::make_unique<CudaMemory>(library);
}

}  // namespace blip2rt
