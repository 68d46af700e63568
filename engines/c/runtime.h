// What opening a model needs besides the model: ONNX Runtime, and options as text.
#pragma once

#include <string>

#include "runtime/model.h"

namespace blip2rt {

// Loads ONNX Runtime for the process. `path` is empty, or names the library. Returns false if it is empty and there is
// no library. Throws Error.
bool load_runtime(std::string path);

// Reads the options of blip2rt_load. `runtime` receives the path of ONNX Runtime, if it is among them. Throws Error
// with all faults.
ModelOptions load_options(const char* const* pairs, std::string& runtime);

}  // namespace blip2rt
