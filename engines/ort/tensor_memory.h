// Where tensors that stay between runs lie: the host's memory, or an NVIDIA GPU's. Knows bytes only.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "ort/ort_api.h"

namespace blip2rt {

class TensorMemory {
 public:
  virtual ~TensorMemory() = default;

  // Memory that is given back when the last owner lets go of it; its contents mean nothing. Throws where there is none.
  virtual std::shared_ptr<void> allocate(size_t bytes) const = 0;

  // `height` pieces of `width` bytes, `pitch` bytes apart on both sides.
  virtual void copy(void* to, const void* from, size_t pitch, size_t width, size_t height) const = 0;

  // Waits until what was copied is there.
  virtual void finish() const = 0;

  // What ONNX Runtime calls it; null is the host's.
  virtual const OrtMemoryInfo* info() const = 0;
};

const TensorMemory& host_memory();

// The first GPU's, through the CUDA runtime library that the process has loaded, or the one of that name. Throws where
// there is none.
const TensorMemory& cuda_memory();

// The same through a library of the caller's choice.
std::unique_ptr<TensorMemory> open_cuda_memory(const std::string& library);

}  // namespace blip2rt
