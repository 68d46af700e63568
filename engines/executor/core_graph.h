// Opens graphs for a Session without ONNX Runtime.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "graphs/session.h"

namespace blip2rt {

// See OpenGraph. Throws RunTimeout, and GraphError, in one line that names the operator, for what the executor cannot
// run.
std::unique_ptr<RuntimeGraph> open_with_executor(GraphSource source);

// Whether the executor is at least as fast as ONNX Runtime on this processor, for graphs of these precisions.
bool prefers_executor(const std::vector<std::string>& precisions);

}  // namespace blip2rt
