// Our operators of ONNX Runtime. Knows tensors.
#pragma once

#include "ort/ort_api.h"

namespace blip2rt {

constexpr char kOwnDomain[] = "blip2rt";
// x (.., K) float32, codes, scales float16, zero points -> (.., N): int4_matmul.h. Attributes N, K, block_size, split:
// whether activations are of 16 bits, threads: how many there are.
constexpr char kMatMulInt4[] = "MatMulInt4";
// x (.., K) float32, codes (N, K) int8, scales (N) float32[, bias (N) float32] -> (.., N): int8_matmul.h. N, K,
// bias: whether there is one, threads.
constexpr char kMatMulInt8[] = "MatMulInt8";
// query (B,S,H*hd), key and value (B,S,Hkv*hd), or query with both behind it, past_key and past_value (B,Hkv,T,hd),
// cache_rows (B,4) int32: a CacheRow for each row[, cos and sin (positions, half of what rotates)]
// [, attention_bias (1 or B, 1 or H, S, all)] -> (B,S,H*hd), present_key, present_value (B,Hkv,T,hd): attention.h.
// Present is past, bound to the same memory, which holds all the rows that cache_rows names: a prompt's may lie behind
// the B that the tensor shows. Attributes num_heads, kv_num_heads, local_window_size (-1: none), scale (0: the square
// root's inverse), softcap (0: none).
constexpr char kOwnAttention[] = "Attention";
// The input of a graph that it reads.
constexpr char kCacheRows[] = "cache_rows";
// query (B,H,S,hd), cross_key and cross_value (B,H,K,hd), what is added to the scores (B,1,1,K), encoder_rows (B)
// int32: which row of cross_key and cross_value each looks at -> (B,H,S,hd). As above, that row may lie behind the B.
constexpr char kOwnCrossAttention[] = "CrossAttention";
constexpr char kEncoderRows[] = "encoder_rows";
// Query, key and value of all positions side by side, (B,S,3*H*hd) float32, of which so many positions are an image ->
// (images, positions, H*hd): encoder_attention.h. Attributes positions, num_heads, scale.
constexpr char kOwnEncoderAttention[] = "EncoderAttention";

void add_own_products(OrtCustomOpDomain* domain);
void add_own_attention(OrtCustomOpDomain* domain);

// Makes them known to sessions with these options.
void add_own_ops(OrtSessionOptions* options);

}  // namespace blip2rt
