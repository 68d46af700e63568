// Attention in a graph that our operators can take over. Knows node types.
#pragma once

#include "graphs/onnx_graph.h"

namespace blip2rt {

// Writes Attention in place of every GroupQueryAttention. Changes nothing where one of them has to stay, because they
// share a cache, or where others read or write what is theirs.
NodeChanges rewrite_cache_attention(const Graph& graph);

// Writes CrossAttention in place of MatMul(Softmax(MatMul(query, cross_key transposed) + mask), cross_value) in every
// layer. Changes nothing where one layer is written in another way.
NodeChanges rewrite_cross_attention(const Graph& graph);

// Writes EncoderAttention in place of what a vision transformer does with the product of queries, keys and values:
// Split in three, Reshape into heads and Transpose of each, MatMul(Softmax(MatMul(query, key) * scale), value),
// Transpose and Reshape back. Leaves alone what is written in another way.
NodeChanges rewrite_encoder_attention(const Graph& graph);

}  // namespace blip2rt
