// Turns C++ classes into custom operators of ONNX Runtime, with access to its threads and tensors.
#pragma once

#include <algorithm>
#include <atomic>
#include <exception>
#include <iterator>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "ort/ort_api.h"

namespace blip2rt {

// A reusable buffer of one thread. It grows on demand, so that a token allocates nothing.
class Buffer {
 public:
  template <class T>
  T* get(size_t count) {
    constexpr size_t kLine = static_cast<size_t>(kAlignment);
    const size_t bytes = (count * sizeof(T) + kLine - 1) / kLine * kLine;
    if (bytes > size_) {
      memory_.reset();
      size_ = 0;
      memory_.reset(::operator new(bytes, kAlignment));
      size_ = bytes;
    }
    return static_cast<T*>(memory_.get());
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(void* memory) const { ::operator delete(memory, kAlignment); }
  };
  std::unique_ptr<void, Free> memory_;
  size_t size_ = 0;
};

// Calls work(first, last) on ONNX Runtime's threads for parts of [0, count) with `part_size` items each. Rethrows the
// first exception after all parts have ended: none may pass through ONNX Runtime.
template <class F>
void parallel_for(OrtKernelContext* context, size_t count, size_t part_size, const F& work) {
  struct Parts {
    const F* work;
    size_t count, part_size;
    std::atomic_flag failed = ATOMIC_FLAG_INIT;
    std::exception_ptr failure = nullptr;  // the first one
  } parts = {&work, count, part_size};
  const auto one = [](void* data, size_t part) {
    Parts& p = *static_cast<Parts*>(data);
    try {
      (*p.work)(part* p.part_size, std::min(p.count, (part + 1) * p.part_size));
    } catch (...) {
      if (!p.failed.test_and_set()) p.failure = std::current_exception();
    }
  };
  check(ort().KernelContext_ParallelFor(context, one, (count + part_size - 1) / part_size, 0, &parts));
  if (parts.failure) std::rethrow_exception(parts.failure);
}

// An input tensor of an operator.
struct Tensor {
  static constexpr size_t kMaxAxes = 8;  // an array, because a vector would allocate per token
  void* data = nullptr;
  int64_t axes[kMaxAxes] = {};
  size_t rank = 0;
  bool is_present = false;  // false if an optional input is missing

  explicit operator bool() const { return is_present; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

inline Tensor input(OrtKernelContext* context, size_t index) {
  Tensor tensor;
  const OrtValue* value = nullptr;
  check(ort().KernelContext_GetInput(context, index, &value));
  if (value == nullptr) return tensor;
  tensor.is_present = true;
  check(ort().GetTensorMutableData(const_cast<OrtValue*>(value), &tensor.data));
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  check(ort().GetTensorTypeAndShape(value, &raw));
  TensorTypeAndShapeInfo info(raw);
  check(ort().GetDimensionsCount(raw, &tensor.rank));
  if (tensor.rank > Tensor::kMaxAxes) throw std::runtime_error("an operator's input has more than 8 axes");
  check(ort().GetDimensions(raw, tensor.axes, tensor.rank));
  return tensor;
}

inline float* output(OrtKernelContext* context, size_t index, const int64_t* axes, size_t rank) {
  OrtValue* value = nullptr;
  void* data = nullptr;
  check(ort().KernelContext_GetOutput(context, index, axes, rank, &value));
  check(ort().GetTensorMutableData(value, &data));
  return static_cast<float*>(data);
}

inline int64_t attribute(const OrtKernelInfo* info, const char* name) {
  int64_t value = 0;
  check(ort().KernelInfoGetAttribute_int64(info, name, &value));
  return value;
}

// Returns an attribute between 1 and `max`. Throws std::runtime_error.
inline size_t size_attribute(const OrtKernelInfo* info, const char* name, int64_t max) {
  const int64_t size = attribute(info, name);
  if (size < 1 || size > max) throw std::runtime_error(std::string("an operator has an invalid ") + name);
  return static_cast<size_t>(size);
}

// Returns an attribute that is an address in this process. The rewriting of graphs checks what is there.
template <class T>
const T* address_attribute(const OrtKernelInfo* info, const char* name) {
  return reinterpret_cast<const T*>(static_cast<uintptr_t>(attribute(info, name)));
}

inline float float_attribute(const OrtKernelInfo* info, const char* name) {
  float value = 0;
  check(ort().KernelInfoGetAttribute_float(info, name, &value));
  return value;
}

template <class F>
OrtStatus* catch_errors(const F& work) {
  constexpr int kFail = 1;
  try {
    work();
    return nullptr;
  } catch (const std::bad_alloc&) {
    return ort().CreateStatus(kFail, "out of memory");
  } catch (const std::exception& error) {
    return ort().CreateStatus(kFail, error.what());
  } catch (...) {
    return ort().CreateStatus(kFail, "an operator failed");
  }
}

// Creates the operator for a class Op with kName, kInputs (their types), optional(index), kOutputs (number of float32
// outputs), a constructor from OrtKernelInfo, and compute(OrtKernelContext*).
template <class Op>
const OrtCustomOp* custom_op() {
  static const CustomOp op = [] {
    CustomOp made = {};
    made.version = kApiVersion;
    made.GetName = [](const OrtCustomOp*) { return Op::kName; };
    made.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
    made.GetInputType = [](const OrtCustomOp*, size_t index) { return static_cast<int>(Op::kInputs[index]); };
    made.GetInputTypeCount = [](const OrtCustomOp*) { return std::size(Op::kInputs); };
    made.GetOutputType = [](const OrtCustomOp*, size_t) { return static_cast<int>(DType::kFloat32); };
    made.GetOutputTypeCount = [](const OrtCustomOp*) { return Op::kOutputs; };
    made.KernelDestroy = [](void* kernel) { delete static_cast<Op*>(kernel); };
    made.GetInputCharacteristic = [](const OrtCustomOp*, size_t index) { return Op::optional(index) ? 1 : 0; };
    made.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return 0; };  // required
    made.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };       // the provider's memory
    made.CreateKernelV2 = [](const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
      return catch_errors([&] { *kernel = new Op(info); });
    };
    made.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
      return catch_errors([&] { static_cast<const Op*>(kernel)->compute(context); });
    };
    made.GetStartVersion = [](const OrtCustomOp*) { return 1; };
    made.GetEndVersion = [](const OrtCustomOp*) { return 1; };
    return made;
  }();
  return reinterpret_cast<const OrtCustomOp*>(&op);
}

}  // namespace blip2rt
