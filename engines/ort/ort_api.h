// Declares the few entries of ONNX Runtime's C API that the core uses, with owning types for what they return.
//
// No wheel ships the C headers, so the entries are declared here. OrtApi is an append-only table of function pointers
// whose published slots never move; tests/engines/native/ort_api_layout.cpp compares slots and signatures with the real
// header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/system.h"
#include "base/tensor.h"

struct OrtAllocator;
struct OrtApi;
struct OrtCustomOp;
struct OrtCustomOpDomain;
struct OrtEnv;
struct OrtIoBinding;
struct OrtKernelContext;
struct OrtKernelInfo;
struct OrtMemoryInfo;
struct OrtRunOptions;
struct OrtSession;
struct OrtSessionOptions;
struct OrtShapeInferContext;
struct OrtStatus;
struct OrtTensorTypeAndShapeInfo;
struct OrtTypeInfo;
struct OrtValue;

namespace blip2rt {

// The oldest API version with every slot below. ONNX Runtime 1.23 and later support it.
inline constexpr uint32_t kApiVersion = 20;

// X(name, return type, arguments) for each function of a custom operator.
#define BLIP2RT_CUSTOM_OP_FIELDS(X)                                                                \
  X(CreateKernel, void*, (const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*))                \
  X(GetName, const char*, (const OrtCustomOp*))                                                    \
  X(GetExecutionProviderType, const char*, (const OrtCustomOp*))                                   \
  X(GetInputType, int, (const OrtCustomOp*, size_t))                                               \
  X(GetInputTypeCount, size_t, (const OrtCustomOp*))                                               \
  X(GetOutputType, int, (const OrtCustomOp*, size_t))                                              \
  X(GetOutputTypeCount, size_t, (const OrtCustomOp*))                                              \
  X(KernelCompute, void, (void*, OrtKernelContext*))                                               \
  X(KernelDestroy, void, (void*))                                                                  \
  X(GetInputCharacteristic, int, (const OrtCustomOp*, size_t))                                     \
  X(GetOutputCharacteristic, int, (const OrtCustomOp*, size_t))                                    \
  X(GetInputMemoryType, int, (const OrtCustomOp*, size_t))                                         \
  X(GetVariadicInputMinArity, int, (const OrtCustomOp*))                                           \
  X(GetVariadicInputHomogeneity, int, (const OrtCustomOp*))                                        \
  X(GetVariadicOutputMinArity, int, (const OrtCustomOp*))                                          \
  X(GetVariadicOutputHomogeneity, int, (const OrtCustomOp*))                                       \
  X(CreateKernelV2, OrtStatus*, (const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void**)) \
  X(KernelComputeV2, OrtStatus*, (void*, OrtKernelContext*))                                       \
  X(InferOutputShapeFn, OrtStatus*, (const OrtCustomOp*, OrtShapeInferContext*))                   \
  X(GetStartVersion, int, (const OrtCustomOp*))                                                    \
  X(GetEndVersion, int, (const OrtCustomOp*))                                                      \
  X(GetMayInplace, size_t, (int**, int**))                                                         \
  X(ReleaseMayInplace, void, (int*, int*))                                                         \
  X(GetAliasMap, size_t, (int**, int**))                                                           \
  X(ReleaseAliasMap, void, (int*, int*))

// OrtCustomOp of the C API: a custom operator. Unused entries are null.
struct CustomOp {
  uint32_t version;
#define BLIP2RT_DECLARE(name, result, arguments) result(*name) arguments;
  BLIP2RT_CUSTOM_OP_FIELDS(BLIP2RT_DECLARE)
#undef BLIP2RT_DECLARE
};

// X(name, slot, return type, arguments). Enumerations of the C API are passed as int.
#define BLIP2RT_ORT_ENTRIES(X)                                                                                   \
  X(CreateStatus, 0, OrtStatus*, (int, const char*))                                                             \
  X(GetErrorMessage, 2, const char*, (const OrtStatus*))                                                         \
  X(CreateEnv, 3, OrtStatus*, (int, const char*, OrtEnv**))                                                      \
  X(DisableTelemetryEvents, 6, OrtStatus*, (const OrtEnv*))                                                      \
  X(CreateSession, 7, OrtStatus*, (const OrtEnv*, const PathCharacter*, const OrtSessionOptions*, OrtSession**)) \
  X(CreateSessionFromArray, 8, OrtStatus*,                                                                       \
    (const OrtEnv*, const void*, size_t, const OrtSessionOptions*, OrtSession**))                                \
  X(Run, 9, OrtStatus*,                                                                                          \
    (OrtSession*, const OrtRunOptions*, const char* const*, const OrtValue* const*, size_t, const char* const*,  \
     size_t, OrtValue**))                                                                                        \
  X(CreateSessionOptions, 10, OrtStatus*, (OrtSessionOptions**))                                                 \
  X(DisableMemPattern, 17, OrtStatus*, (OrtSessionOptions*))                                                     \
  X(SetSessionGraphOptimizationLevel, 23, OrtStatus*, (OrtSessionOptions*, int))                                 \
  X(SetIntraOpNumThreads, 24, OrtStatus*, (OrtSessionOptions*, int))                                             \
  X(CreateCustomOpDomain, 26, OrtStatus*, (const char*, OrtCustomOpDomain**))                                    \
  X(CustomOpDomain_Add, 27, OrtStatus*, (OrtCustomOpDomain*, const OrtCustomOp*))                                \
  X(AddCustomOpDomain, 28, OrtStatus*, (OrtSessionOptions*, OrtCustomOpDomain*))                                 \
  X(SessionGetInputCount, 30, OrtStatus*, (const OrtSession*, size_t*))                                          \
  X(SessionGetOutputCount, 31, OrtStatus*, (const OrtSession*, size_t*))                                         \
  X(SessionGetInputTypeInfo, 33, OrtStatus*, (const OrtSession*, size_t, OrtTypeInfo**))                         \
  X(SessionGetOutputTypeInfo, 34, OrtStatus*, (const OrtSession*, size_t, OrtTypeInfo**))                        \
  X(SessionGetInputName, 36, OrtStatus*, (const OrtSession*, size_t, OrtAllocator*, char**))                     \
  X(SessionGetOutputName, 37, OrtStatus*, (const OrtSession*, size_t, OrtAllocator*, char**))                    \
  X(CreateRunOptions, 39, OrtStatus*, (OrtRunOptions**))                                                         \
  X(RunOptionsSetTerminate, 46, OrtStatus*, (OrtRunOptions*))                                                    \
  X(CreateTensorWithDataAsOrtValue, 49, OrtStatus*,                                                              \
    (const OrtMemoryInfo*, void*, size_t, const int64_t*, size_t, int, OrtValue**))                              \
  X(GetTensorMutableData, 51, OrtStatus*, (OrtValue*, void**))                                                   \
  X(CastTypeInfoToTensorInfo, 55, OrtStatus*, (const OrtTypeInfo*, const OrtTensorTypeAndShapeInfo**))           \
  X(GetTensorElementType, 60, OrtStatus*, (const OrtTensorTypeAndShapeInfo*, int*))                              \
  X(GetDimensionsCount, 61, OrtStatus*, (const OrtTensorTypeAndShapeInfo*, size_t*))                             \
  X(GetDimensions, 62, OrtStatus*, (const OrtTensorTypeAndShapeInfo*, int64_t*, size_t))                         \
  X(GetTensorTypeAndShape, 65, OrtStatus*, (const OrtValue*, OrtTensorTypeAndShapeInfo**))                       \
  X(CreateCpuMemoryInfo, 69, OrtStatus*, (int, int, OrtMemoryInfo**))                                            \
  X(AllocatorFree, 76, OrtStatus*, (OrtAllocator*, void*))                                                       \
  X(GetAllocatorWithDefaultOptions, 78, OrtStatus*, (OrtAllocator**))                                            \
  X(KernelInfoGetAttribute_float, 85, OrtStatus*, (const OrtKernelInfo*, const char*, float*))                   \
  X(KernelInfoGetAttribute_int64, 86, OrtStatus*, (const OrtKernelInfo*, const char*, int64_t*))                 \
  X(KernelContext_GetInput, 90, OrtStatus*, (const OrtKernelContext*, size_t, const OrtValue**))                 \
  X(KernelContext_GetOutput, 91, OrtStatus*, (OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**))    \
  X(ReleaseStatus, 93, void, (OrtStatus*))                                                                       \
  X(ReleaseSession, 95, void, (OrtSession*))                                                                     \
  X(ReleaseValue, 96, void, (OrtValue*))                                                                         \
  X(ReleaseRunOptions, 97, void, (OrtRunOptions*))                                                               \
  X(ReleaseTypeInfo, 98, void, (OrtTypeInfo*))                                                                   \
  X(ReleaseTensorTypeAndShapeInfo, 99, void, (OrtTensorTypeAndShapeInfo*))                                       \
  X(ReleaseSessionOptions, 100, void, (OrtSessionOptions*))                                                      \
  X(AddSessionConfigEntry, 130, OrtStatus*, (OrtSessionOptions*, const char*, const char*))                      \
  X(RunWithBinding, 133, OrtStatus*, (OrtSession*, const OrtRunOptions*, const OrtIoBinding*))                   \
  X(CreateIoBinding, 134, OrtStatus*, (OrtSession*, OrtIoBinding**))                                             \
  X(ReleaseIoBinding, 135, void, (OrtIoBinding*))                                                                \
  X(BindInput, 136, OrtStatus*, (OrtIoBinding*, const char*, const OrtValue*))                                   \
  X(BindOutput, 137, OrtStatus*, (OrtIoBinding*, const char*, const OrtValue*))                                  \
  X(AddRunConfigEntry, 165, OrtStatus*, (OrtRunOptions*, const char*, const char*))                              \
  X(KernelInfoGetConstantInput_tensor, 249, OrtStatus*, (const OrtKernelInfo*, size_t, int*, const OrtValue**))  \
  X(KernelContext_ParallelFor, 274, OrtStatus*,                                                                  \
    (const OrtKernelContext*, void (*)(void*, size_t), size_t, size_t, void*))

struct OrtEntries {
#define BLIP2RT_DECLARE(name, slot, result, arguments) result(*name) arguments noexcept = nullptr;
  BLIP2RT_ORT_ENTRIES(BLIP2RT_DECLARE)
#undef BLIP2RT_DECLARE
};

// Loads the library and creates the process's only environment. Does nothing if called again with the same path. Throws
// for another path: two copies of ONNX Runtime would compete for the same cores.
void load_onnxruntime(const std::string& library_path);

// Returns the loaded entries. Asserts that load_onnxruntime was called.
const OrtEntries& ort();
const OrtEnv* ort_environment();
const std::string& ort_version();
bool ort_older_than(int minor_of_1);  // whether the library is older than 1.minor

// Throws std::runtime_error with ONNX Runtime's message if a call failed.
void check(OrtStatus* status);

#define BLIP2RT_OWNED(Type, Alias)                              \
  struct Alias##Deleter {                                       \
    void operator()(Type* p) const { ort().Release##Alias(p); } \
  };                                                            \
  using Alias = std::unique_ptr<Type, Alias##Deleter>;
BLIP2RT_OWNED(OrtValue, Value)
BLIP2RT_OWNED(OrtTypeInfo, TypeInfo)
BLIP2RT_OWNED(OrtTensorTypeAndShapeInfo, TensorTypeAndShapeInfo)
BLIP2RT_OWNED(OrtSessionOptions, SessionOptions)
BLIP2RT_OWNED(OrtRunOptions, RunOptions)
BLIP2RT_OWNED(OrtIoBinding, IoBinding)
#undef BLIP2RT_OWNED
struct SessionDeleter {
  void operator()(OrtSession* session) const { ort().ReleaseSession(session); }
};
using OwnedSession = std::unique_ptr<OrtSession, SessionDeleter>;

// Creates a tensor over the view's memory, which must outlive it.
Value value_of(const TensorView& view);

TensorInfo tensor_info(const OrtTensorTypeAndShapeInfo* info);
// Views a tensor of ONNX Runtime.
TensorView view_of(const OrtValue* value);

}  // namespace blip2rt
