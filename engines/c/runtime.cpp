#include "c/runtime.h"

#include <algorithm>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "base/system.h"
#include "base/utf8.h"
#include "ort/ort_api.h"

namespace blip2rt {
namespace {

constexpr const char* kLoadOptions[] = {"threads",        "onnxruntime", "max_pixels", "scaled_jpeg", "special_tokens",
                                        "trusted_graphs", "verify",      "runtime",    "run_timeout"};

#if defined(_WIN32)
constexpr const char* kOnnxRuntime = "onnxruntime.dll";
#elif defined(__APPLE__)
constexpr const char* kOnnxRuntime = "libonnxruntime.dylib";
#else
constexpr const char* kOnnxRuntime = "libonnxruntime.so.1";
#endif

#if defined(BLIP2RT_STATIC)
constexpr bool kLoadsLibraries = false;
#else
constexpr bool kLoadsLibraries = true;
#endif

std::optional<double> parse_seconds(const std::string& text) {
  const std::optional<double> seconds = parse_number(text);
  return seconds && *seconds >= 1e-3 && *seconds <= 1e9 ? seconds : std::nullopt;
}

bool has_library(const std::string& name) {
  try {
    load_library(name);
    return true;
  } catch (const std::runtime_error&) {
    return false;
  }
}

}  // namespace

bool load_runtime(std::string path) {
  static std::mutex mutex;
  static bool loaded = false;
  const std::lock_guard lock(mutex);
  if (loaded && path.empty()) return true;
  if (path.empty()) {
    const std::string beside = own_folder() + kOnnxRuntime;
    path = file_status(beside).kind == FileKind::kRegular ? beside : kOnnxRuntime;
    if (path == kOnnxRuntime && !has_library(path)) return false;
  }
  try {
    load_onnxruntime(path);
  } catch (const std::runtime_error& error) {
    throw Error(ErrorKind::kBackend,
                std::string(error.what()) + ": install ONNX Runtime, or name its library by the option onnxruntime");
  }
  return loaded = true;
}

ModelOptions load_options(const char* const* pairs, std::string& runtime) {
  ModelOptions options;
  Faults faults, unknown;
  const Faults names(std::begin(kLoadOptions), std::end(kLoadOptions));
  for (const auto& [name, value] : read_pairs(pairs)) {
    const auto require = [&, name = name, value = value](const auto& parsed, auto& into, const char* what) {
      using Into = std::decay_t<decltype(into)>;
      if (parsed) {
        into = static_cast<Into>(*parsed);
      } else {
        faults.push_back(name + " is " + shown(value) + ": give " + what);
      }
    };
    if (!kLoadsLibraries && (name == "onnxruntime" || (name == "runtime" && value == "onnxruntime"))) {
      faults.push_back("a static program runs graphs itself: leave out " + name);
    } else if (name == "threads") {
      require(parse_whole(value, 1, 1024), options.graphs.threads,
              "a whole number from 1 to 1024, or leave it out for all cores");
    } else if (name == "run_timeout") {
      require(parse_seconds(value), options.graphs.run_timeout,
              "a number of seconds from 0.001 to 1e9, or leave it out");
    } else if (name == "onnxruntime") {
      runtime = value;
    } else if (name == "runtime") {
      options.core = value == "core";
      if (!*options.core && value != "onnxruntime") {
        faults.push_back("runtime is " + shown(value) + ": choose from core, onnxruntime");
      }
    } else if (name == "max_pixels") {
      require(parse_whole(value, 1, kMostPixels), options.images.max_pixels,
              "a number of pixels from 1 to 178,956,970");
    } else if (name == "scaled_jpeg") {
      require(parse_flag(value), options.images.scaled_jpeg, "true or false");
    } else if (name == "special_tokens") {
      require(parse_flag(value), options.special_tokens, "true or false");
    } else if (name == "trusted_graphs") {
      require(parse_flag(value), options.graphs.trusted, "true or false");
    } else if (name == "verify") {
      require(parse_flag(value), options.verify, "true or false");
    } else {
      unknown.push_back(single_line(name));
    }
  }
  if (!unknown.empty()) {
    faults.insert(faults.begin(), "unknown option " + joined(unknown, ", ") + ": choose from " + joined(names, ", "));
  }
  if (!faults.empty()) throw Error(ErrorKind::kArgument, std::move(faults));
  const unsigned cores = std::thread::hardware_concurrency();  // more threads only wait for each other
  if (cores > 0) options.graphs.threads = std::min(options.graphs.threads, static_cast<int>(cores));
  return options;
}

}  // namespace blip2rt
