// The entries of the CUDA runtime that engines/ort/tensor_memory.cpp calls, on host memory. A copy is done when the
// device is waited for, and only then.
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

namespace {
std::vector<std::function<void()>> pending;
}

extern "C" {
int cudaMalloc(void** memory, size_t bytes) {
  if (bytes > size_t{1} << 40) return 2;
  *memory = std::malloc(bytes);
  return 0;
}
int cudaFree(void* memory) {
  std::free(memory);
  return 0;
}
int cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height,
                 int kind) {
  if (kind != 3 || width > to_pitch || width > from_pitch) return 1;
  pending.push_back([=] {
    for (size_t i = 0; i < height; ++i) {
      std::memcpy(static_cast<char*>(to) + i * to_pitch, static_cast<const char*>(from) + i * from_pitch, width);
    }
  });
  return 0;
}
int cudaDeviceSynchronize() {
  for (const auto& work : pending) work();
  pending.clear();
  return 0;
}
const char* cudaGetErrorString(int error) { return error == 2 ? "out of memory" : "invalid value"; }
}
