// Loads ONNX Runtime at run time, fills the entry table, and wraps calls that return owned objects.
#include "ort/ort_api.h"

#include <cassert>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>

#include "base/system.h"
#include "base/utf8.h"
#include "ort/active_call.h"

namespace blip2rt {
namespace {

struct ApiBase {
  const void* const* (*get_api)(uint32_t version) noexcept;
  const char* (*get_version)() noexcept;
};

struct Loaded {
  std::string path;
  std::string version;
  OrtEntries entries;
  OrtEnv* environment = nullptr;
  OrtMemoryInfo* cpu_memory = nullptr;
};

// Never destroyed, because sessions and arrays of the interpreter may outlive static destruction.
Loaded* loaded = nullptr;
std::mutex loading;

// ONNX Runtime 1.32 opens an event store in the home directory and resolves a host name as soon as an environment is
// created, before its API could disable that. Keeps a value that the user has set.
void disable_telemetry() { set_default_variable("ORT_DISABLE_TELEMETRY", "1"); }

const ApiBase& api_base(const std::string& path) {
  disable_telemetry();
  void* library = nullptr;
  try {
    library = load_library(path);
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(std::string("cannot load ONNX Runtime: ") + error.what());
  }
  void* symbol = find_symbol(library, "OrtGetApiBase");
  if (symbol == nullptr) throw std::runtime_error(path + " is not ONNX Runtime: it has no OrtGetApiBase");
  return *reinterpret_cast<const ApiBase* (*)()>(symbol)();
}

bool is_before(const std::string& version, int minor_of_1) {
  int major = 0, minor = 0;
  return std::sscanf(version.c_str(), "%d.%d", &major, &minor) == 2 &&
         (major < 1 || (major == 1 && minor < minor_of_1));
}

// In older versions operators do not compare tensors with attributes, so an untrusted graph could read out of bounds.
bool is_too_old(const std::string& version) { return is_before(version, 23); }

}  // namespace

void load_onnxruntime(const std::string& library_path) {
  std::lock_guard<std::mutex> lock(loading);
  if (loaded != nullptr) {
    if (loaded->path == library_path) return;
    throw std::runtime_error("ONNX Runtime is already loaded from " + loaded->path + "; one process cannot also use " +
                             library_path);
  }
  const ApiBase& base = api_base(library_path);
  auto fresh = std::make_unique<Loaded>();
  fresh->path = library_path;
  fresh->version = base.get_version();
  const void* const* table = is_too_old(fresh->version) ? nullptr : base.get_api(kApiVersion);
  if (table == nullptr) {
    throw std::runtime_error("ONNX Runtime " + fresh->version + " is too old: blip2rt needs 1.23 or newer");
  }
#define BLIP2RT_FILL(name, slot, result, arguments) \
  fresh->entries.name = reinterpret_cast<decltype(fresh->entries.name)>(const_cast<void*>(table[slot]));
  BLIP2RT_ORT_ENTRIES(BLIP2RT_FILL)
#undef BLIP2RT_FILL

  loaded = fresh.get();  // check() below needs it
  try {
    constexpr int kFatal = 4, kDeviceAllocator = 0, kDefaultMemory = 0;
    // Errors arrive as exceptions; logging them as well would clutter stderr.
    check(ort().CreateEnv(kFatal, "blip2rt", &fresh->environment));
    check(ort().DisableTelemetryEvents(fresh->environment));
    check(ort().CreateCpuMemoryInfo(kDeviceAllocator, kDefaultMemory, &fresh->cpu_memory));
  } catch (...) {
    loaded = nullptr;
    throw;
  }
  fresh.release();
  start_counting_calls();
}

const OrtEntries& ort() {
  assert(loaded != nullptr);
  return loaded->entries;
}

const OrtEnv* ort_environment() { return loaded->environment; }

const std::string& ort_version() { return loaded->version; }

bool ort_older_than(int minor_of_1) { return is_before(loaded->version, minor_of_1); }

void check(OrtStatus* status) {
  if (status == nullptr) return;
  struct Owned {
    OrtStatus* status;
    ~Owned() { ort().ReleaseStatus(status); }
  } owned = {status};
  const std::string message = single_line(ort().GetErrorMessage(status));  // it may quote arbitrary bytes
  // Out-of-memory messages of our operators, of C++ and of ONNX Runtime's arena, which have no error code.
  for (const char* lack : {"out of memory", "bad_alloc", "Failed to allocate memory"}) {
    if (message.find(lack) != std::string::npos) throw std::bad_alloc();
  }
  throw std::runtime_error(message);
}

Value value_of(const TensorView& view) {
  OrtValue* value = nullptr;
  check(ort().CreateTensorWithDataAsOrtValue(loaded->cpu_memory, view.data, view.bytes(), view.axes, view.rank,
                                             static_cast<int>(view.dtype), &value));
  return Value(value);
}

TensorInfo tensor_info(const OrtTensorTypeAndShapeInfo* info) {
  TensorInfo result;
  int dtype = 0;
  size_t rank = 0;
  check(ort().GetTensorElementType(info, &dtype));
  check(ort().GetDimensionsCount(info, &rank));
  result.dtype = static_cast<DType>(dtype);
  result.shape.resize(rank);
  check(ort().GetDimensions(info, result.shape.data(), rank));
  return result;
}

TensorView view_of(const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  check(ort().GetTensorTypeAndShape(value, &raw));
  TensorTypeAndShapeInfo info(raw);
  TensorView view;
  int dtype = 0;
  check(ort().GetTensorMutableData(const_cast<OrtValue*>(value), &view.data));
  check(ort().GetTensorElementType(raw, &dtype));
  check(ort().GetDimensionsCount(raw, &view.rank));
  if (view.rank > TensorView::kMaxAxes) throw std::runtime_error("a tensor has more than 8 axes");
  check(ort().GetDimensions(raw, view.axes, view.rank));
  view.dtype = static_cast<DType>(dtype);
  return view;
}

}  // namespace blip2rt
