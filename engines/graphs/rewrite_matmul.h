// Replaces quantized products by custom operators.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <string_view>

#include "graphs/graph_file.h"
#include "graphs/onnx_graph.h"

namespace blip2rt {

// Maps a derived value to the stored constant that our operators read instead: scales cast from float16, transposed
// int8 codes.
using ConstantSources = std::map<std::string_view, std::string_view>;
ConstantSources find_constant_sources(const Graph& graph);

// Replaces a MatMulNBits by MatMulInt4, which reads its constants from `weights`, and removes its uses of them from
// graph.use_counts. Returns an empty string for other or unsupported nodes.
std::string rewrite_int4(const Node& node, Graph& graph, const ConstantSources& sources, size_t threads,
                         Weights& weights);

// Replaces a DynamicQuantizeMatMul of transposed codes by MatMulInt8, likewise.
std::string rewrite_int8(const Node& node, Graph& graph, const ConstantSources& sources, size_t threads,
                         Weights& weights);

}  // namespace blip2rt
