// A libFuzzer target: passes arbitrary bytes to the validation and the rewriting of graphs. An accepted graph must
// parse after it was rewritten, and have the operators that are reported.
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "base/utf8.h"
#include "graphs/graph_file.h"
#include "graphs/onnx_graph.h"
#include "graphs/onnx_schema.h"
#include "graphs/rewrite.h"
#include "ops/domain.h"

using namespace blip2rt;

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string model(reinterpret_cast<const char*>(data), size);
  require(is_utf8(single_line(model)));
  const AllowedFiles files = std::map<std::string, uint64_t>{{"a.data", 100}};
  try {
    check_model(model, "/nonexistent/", files, static_cast<OperatorRules>(size % 3));
  } catch (const std::runtime_error& error) {
    require(single_line(error.what()) == error.what());
  }
  try {
    scan_model(model);  // of graphs whose data lies elsewhere, too
  } catch (const std::runtime_error&) {
    return 0;
  }
  for (int which = 1; which < 8; ++which) {
    RewrittenGraph graph;
    Weights weights("/nonexistent/");
    try {
      graph = rewrite_model(model, {(which & 1) != 0, (which & 2) != 0, (which & 4) != 0, 1}, weights);
    } catch (const std::runtime_error&) {
      continue;
    }
    require(!graph.bytes.empty() || graph.kernels.empty());
    if (graph.bytes.empty()) continue;
    bool ours = false;
    for (std::string_view domain : scan_model(graph.bytes).domains) ours = ours || domain == kDomain;
    require(ours);
    const Graph parts(OnnxModel(graph.bytes).graph);
    require(!parts.nodes.empty());
  }
  return 0;
}
