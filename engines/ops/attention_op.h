// The operators Attention, CrossAttention and EncoderAttention: kernels/attention as nodes of a graph.
#pragma once

#include "ort/ort_api.h"

namespace blip2rt {

// A language model's attention to its cache, see kernels/attention/attention.h.
// query (B,S,H*hd), key and value (B,S,Hkv*hd), or query with both behind it, past_key and past_value (any,Hkv,T,hd),
// cache_rows (B,4) int32: a CacheRow for each row[, cos and sin (positions, half of what rotates)]
// [, attention_bias (1 or B, 1 or H, S, all)] -> (B,S,H*hd), present_key, present_value (any,Hkv,T,hd).
// Present and past share one memory. It holds every place that cache_rows names, also behind what the tensor shows.
// Attributes: num_heads, kv_num_heads, local_window_size (-1: none), scale (0: 1 / sqrt(hd)), softcap (0: none).
constexpr char kAttention[] = "Attention";

// The graph's input that Attention reads.
constexpr char kCacheRows[] = "cache_rows";

// A decoder's attention to its encoder.
// query (B,H,S,hd), cross_key and cross_value (any,H,K,hd), mask (B,1,1,longest), which is added to the scores,
// encoder_rows (B,2) int32: the place in cross_key and cross_value that each row reads from, as CacheRow has it, and
// how many positions it reads -> (B,H,S,hd). They may lie behind what the tensor shows.
constexpr char kCrossAttention[] = "CrossAttention";

// The graph's input that CrossAttention reads.
constexpr char kEncoderRows[] = "encoder_rows";

// An image encoder's attention, see kernels/attention/encoder_attention.h.
// query, key and value side by side (B,S,3*H*hd) -> (images, positions, H*hd), where B*S = images * positions.
// Attributes: images (-1: any number), positions, num_heads, width (hd), scale.
constexpr char kEncoderAttention[] = "EncoderAttention";

void add_attention_ops(OrtCustomOpDomain* domain);

}  // namespace blip2rt
