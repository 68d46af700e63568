// Replaces attention subgraphs by custom operators.
#pragma once

#include <string_view>

#include "graphs/onnx_graph.h"

namespace blip2rt {

inline constexpr std::string_view kSkipNorm = "SkipSimplifiedLayerNormalization";

// Returns whether operators of a model, with its only graph, may be replaced.
bool is_rewritable(const OnnxModel& model, const Graph& graph);

// Replaces every GroupQueryAttention by Attention. Replaces none if one is unsupported, because they share a cache, or
// if other nodes use the cache.
NodeChanges rewrite_cache_attention(const Graph& graph);

// Replaces MatMul(Softmax(MatMul(query, cross_key transposed) + mask), cross_value) by CrossAttention in every layer,
// or in none if one layer differs.
NodeChanges rewrite_cross_attention(const Graph& graph);

// Replaces the attention of a vision transformer by a node of our own `type`, such as EncoderAttention: Split in three,
// Reshape into heads and Transpose of each, MatMul(Softmax(MatMul(query, key) * scale), value), Transpose and Reshape
// back. Leaves other patterns alone.
NodeChanges rewrite_encoder_attention(const Graph& graph, std::string_view type);

}  // namespace blip2rt
