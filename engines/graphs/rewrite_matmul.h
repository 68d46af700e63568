// Products in a graph that our operators can take over. Knows node types.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <string_view>

#include "graphs/onnx_graph.h"

namespace blip2rt {

// Maps a value that ONNX Runtime's operators read to the constant that it is made of, which ours read as it is stored:
// scales are cast from float16, int8 codes are transposed.
using ConstantSources = std::map<std::string_view, std::string_view>;
ConstantSources find_constant_sources(const Graph& graph);

// Writes MatMulInt4 in place of a MatMulNBits, and takes the node's use of its scales out of graph.use_counts. Returns
// an empty string for every other node, and where our operator cannot do what the node asks for.
std::string rewrite_int4(const Node& node, Graph& graph, const ConstantSources& stored, size_t threads);

// Writes MatMulInt8 in place of a DynamicQuantizeMatMul of transposed codes, and takes the node's use of these out of
// graph.use_counts. Returns an empty string for every other node, and where our operator cannot do what the node asks
// for.
std::string rewrite_int8(const Node& node, Graph& graph, const ConstantSources& stored, size_t threads);

}  // namespace blip2rt
