// The memory of tensors that stay between runs: the host's, or an NVIDIA GPU's. Knows bytes only.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "ort/ort_api.h"

namespace blip2rt {

class TensorMemory {
 public:
  virtual ~TensorMemory() = default;

  // Allocates memory, which is freed with its last owner. Its contents are undefined. Throws where there is no room.
  virtual std::shared_ptr<void> allocate(size_t bytes) const = 0;

  // Copies `height` pieces of `width` bytes, which lie `pitch` bytes apart on both sides.
  virtual void copy(void* to, const void* from, size_t pitch, size_t width, size_t height) const = 0;

  // Waits until all copies are done.
  virtual void finish() const = 0;

  // ONNX Runtime's name for the memory; nullptr is the host's.
  virtual const OrtMemoryInfo* info() const = 0;
};

const TensorMemory& host_memory();

// The first GPU's memory, through the CUDA runtime library that the process has loaded, or else the system's. Throws
// where there is none.
const TensorMemory& cuda_memory();

// The first GPU's memory, through a library of the caller's choice.
std::unique_ptr<TensorMemory> open_cuda_memory(const std::string& library);

}  // namespace blip2rt
