// Compares the slots and signatures of engines/ort/ort_api.h with the real header. Compiling is the test.
#include <onnxruntime_c_api.h>

#include <type_traits>

#include "ort/ort_api.h"

// Our declarations pass enumerations as int.
template <class T>
struct Plain {
  using type = std::conditional_t<std::is_enum_v<T>, int, T>;
};
template <class T>
struct Plain<T*> {
  using type = std::conditional_t<std::is_enum_v<T>, int, T>*;
};
template <class F>
struct Signature;
template <class R, class... A>
struct Signature<R (*)(A...) noexcept> {
  using type = typename Plain<R>::type (*)(typename Plain<A>::type...);
};
template <class R, class... A>
struct Signature<R (*)(A...)> : Signature<R (*)(A...) noexcept> {};

static_assert(ORT_API_VERSION >= blip2rt::kApiVersion, "the header is older than the API that the core asks for");
static_assert(static_cast<int>(blip2rt::DType::kFloat32) == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
static_assert(static_cast<int>(blip2rt::DType::kUInt8) == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8);
static_assert(static_cast<int>(blip2rt::DType::kInt8) == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8);
static_assert(static_cast<int>(blip2rt::DType::kInt32) == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32);
static_assert(static_cast<int>(blip2rt::DType::kInt64) == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
static_assert(static_cast<int>(blip2rt::DType::kBool) == ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL);
static_assert(static_cast<int>(blip2rt::DType::kFloat16) == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16);
static_assert(static_cast<int>(blip2rt::DType::kFloat64) == ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE);
static_assert(ORT_LOGGING_LEVEL_FATAL == 4 && OrtDeviceAllocator == 0 && OrtMemTypeDefault == 0 && ORT_ENABLE_ALL == 99,
              "constants that engines/ writes as numbers");

#define BLIP2RT_COMPARE(name, slot, result, arguments)                                                               \
  static_assert(offsetof(OrtApi, name) == (slot) * sizeof(void*), #name " has another slot");                        \
  static_assert(                                                                                                     \
      std::is_same_v<Signature<decltype(OrtApi::name)>::type, Signature<decltype(blip2rt::OrtEntries::name)>::type>, \
      #name " has another signature");
BLIP2RT_ORT_ENTRIES(BLIP2RT_COMPARE)

// The custom operator, field by field.
#define BLIP2RT_SAME_FIELD(name, result, arguments)                                                             \
  static_assert(offsetof(OrtCustomOp, name) == offsetof(blip2rt::CustomOp, name), #name " has another offset"); \
  static_assert(std::is_same_v<Signature<decltype(OrtCustomOp::name)>::type,                                    \
                               Signature<decltype(blip2rt::CustomOp::name)>::type>,                             \
                #name " has another signature");
BLIP2RT_CUSTOM_OP_FIELDS(BLIP2RT_SAME_FIELD)
