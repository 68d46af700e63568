// The custom operators Attention, CrossAttention and EncoderAttention, which run kernels/attention.
#pragma once

#include <vector>

#include "ops/custom_op.h"

namespace blip2rt {

// A language model's attention to its cache, see kernels/attention/attention.h. query (B,S,H*hd), key and value
// (B,S,Hkv*hd), or a query that contains both, past_key and past_value (any,Hkv,T,hd), cache_rows (B,4) int32: a
// CacheRow per row[, cos and sin (positions, half of the rotary dims)] [, attention_bias (1 or B, 1 or H, S, all)] ->
// (B,S,H*hd), present_key, present_value (any,Hkv,T,hd). Present and past share their memory, which holds every place
// in cache_rows, even outside the tensor's shape. Attributes: num_heads, kv_num_heads, local_window_size (-1: none),
// scale (0: 1 / sqrt(hd)), softcap (0: none).
constexpr char kAttention[] = "Attention";

// The graph input that Attention reads.
constexpr char kCacheRows[] = "cache_rows";

// A decoder's attention to its encoder. query (B,H,S,hd), cross_key and cross_value (any,H,K,hd), mask (B,1,1,longest),
// added to the scores, encoder_rows (B,2) int32: the place in cross_key and cross_value from which each row reads, as
// in CacheRow, and the number of positions -> (B,H,S,hd). Places may be outside the tensor's shape.
constexpr char kCrossAttention[] = "CrossAttention";

// The graph input that CrossAttention reads.
constexpr char kEncoderRows[] = "encoder_rows";

// An image encoder's attention, see kernels/attention/encoder_attention.h. query, key and value interleaved
// (B,S,3*H*hd) -> (images, positions, H*hd), where B*S = images * positions. Attributes: images (-1: any number),
// positions, num_heads, width (hd), scale.
constexpr char kEncoderAttention[] = "EncoderAttention";

std::vector<OperatorType> attention_types();

}  // namespace blip2rt
