// No page loads ONNX Runtime: load_onnxruntime() has failed before a graph is opened with it.
#include <stdexcept>

#include "graphs/session.h"

namespace blip2rt {

std::unique_ptr<RuntimeGraph> open_with_onnxruntime(GraphSource) {
  throw std::logic_error("opens a graph without ONNX Runtime");
}

}  // namespace blip2rt
