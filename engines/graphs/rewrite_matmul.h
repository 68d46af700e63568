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
using Stored = std::map<std::string_view, std::string_view>;
Stored stored_of(const Parts& parts);

// Writes MatMulInt4 in place of a MatMulNBits, and takes the node's use of its scales out of parts.uses. Returns an
// empty string for every other node, and where our operator cannot do what the node asks for.
std::string int4_product(const Node& node, Parts& parts, const Stored& stored, size_t threads);

// Writes MatMulInt8 in place of a DynamicQuantizeMatMul of transposed codes, and takes the node's use of these out of
// parts.uses. Returns an empty string for every other node, and where our operator cannot do what the node asks for.
std::string int8_product(const Node& node, Parts& parts, const Stored& stored, size_t threads);

}  // namespace blip2rt
