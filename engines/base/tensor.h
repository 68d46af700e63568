// Types of tensors, and tensors in memory that something else owns.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace blip2rt {

// Multiplies sizes. Throws std::bad_alloc for a negative one, and for a product that exceeds every memory.
template <class... Sizes>
size_t product_of(Sizes... sizes) {
  size_t product = 1;
  const bool fits = (!__builtin_mul_overflow(product, sizes, &product) && ...);
  return fits && product <= PTRDIFF_MAX ? product : throw std::bad_alloc();
}

// TensorProto.DataType and ONNXTensorElementDataType: the types that our graphs use.
enum class DType : int { kUndefined, kFloat32, kUInt8, kInt8, kInt32 = 6, kInt64, kBool = 9, kFloat16, kFloat64 };

inline const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return "float32";
    case DType::kUInt8: return "uint8";
    case DType::kInt8: return "int8";
    case DType::kInt32: return "int32";
    case DType::kInt64: return "int64";
    case DType::kBool: return "bool";
    case DType::kFloat16: return "float16";
    case DType::kFloat64: return "float64";
    case DType::kUndefined: break;
  }
  return "unsupported";
}

// Returns the bytes of an element, 0 for an unsupported type.
inline size_t element_size(DType dtype) {
  switch (dtype) {
    case DType::kUInt8:
    case DType::kInt8:
    case DType::kBool: return 1;
    case DType::kFloat16: return 2;
    case DType::kFloat32:
    case DType::kInt32: return 4;
    case DType::kFloat64:
    case DType::kInt64: return 8;
    case DType::kUndefined: break;
  }
  return 0;
}

// A shape as messages show it: (2, ?), with ? for a dynamic axis.
inline std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (const int64_t axis : shape) text += (text.size() > 1 ? ", " : "") + (axis < 0 ? "?" : std::to_string(axis));
  return text + ")";
}

struct TensorInfo {
  DType dtype = DType::kUndefined;
  std::vector<int64_t> shape;  // -1 for a dynamic axis
};

// A tensor in memory that something else owns. One without a type is missing, such as an optional input.
struct TensorView {
  static constexpr size_t kMaxAxes = 8;  // an array, because a vector would allocate per token
  void* data = nullptr;
  DType dtype = DType::kUndefined;
  size_t rank = 0;
  int64_t axes[kMaxAxes] = {};

  TensorView() = default;
  // Throws std::runtime_error if there are too many axes.
  TensorView(void* values, DType type, const int64_t* shape, size_t count) : data(values), dtype(type), rank(count) {
    if (count > kMaxAxes) throw std::runtime_error("a tensor has more than 8 axes");
    std::copy_n(shape, count, axes);
  }
  TensorView(void* values, const std::vector<int64_t>& shape, DType type = DType::kFloat32)
      : TensorView(values, type, shape.data(), shape.size()) {}

  explicit operator bool() const { return dtype != DType::kUndefined; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  size_t size(size_t axis) const { return static_cast<size_t>(axes[axis]); }
  size_t count() const {
    size_t product = 1;
    for (size_t i = 0; i < rank; ++i) product *= size(i);
    return product;
  }
  size_t bytes() const { return count() * element_size(dtype); }
};

}  // namespace blip2rt
