// Opens graphs for a Session without ONNX Runtime.
#pragma once

#include <memory>

#include "graphs/session.h"

namespace blip2rt {

// See OpenGraph. Throws GraphError, in one line that names the operator, for what the executor cannot run.
std::unique_ptr<RuntimeGraph> open_with_executor(GraphSource source);

}  // namespace blip2rt
