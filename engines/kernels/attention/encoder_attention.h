// Attention of all of an image encoder's positions to each other, from the queries, keys and values as one product
// leaves them side by side. Knows numbers only.
#pragma once

#include <cstddef>
#include <cstdint>

namespace blip2rt {

// Of one image.
struct EncoderAttention {
  size_t positions, heads, width;  // width: floats of a head
  const float* qkv;                // (positions, 3, heads, width): query, key, value
  float scale;                     // of scores
  float* out;                      // (positions, heads, width)
};

// One way to do it for the processor that runs. Scores are products of 16 bits of mantissa, probabilities and values
// have 8 (bfloat16): |error| <= 1 % of the largest value of a head.
struct EncoderAttentionKernel {
  const char* name;
  // Bytes at a multiple of 64 that one head needs.
  size_t (*scratch_size)(const EncoderAttention& attention);
  void (*attend)(const EncoderAttention& attention, size_t head, uint8_t* scratch);
};

// nullptr where this processor has none that is faster than ONNX Runtime's parts.
const EncoderAttentionKernel* encoder_attention_kernel();

}  // namespace blip2rt
