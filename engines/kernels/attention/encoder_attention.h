// Attention of all positions of an image to each other. Reads queries, keys and values as one product leaves them, side
// by side. Knows numbers only.
#pragma once

#include <cstddef>
#include <cstdint>

namespace blip2rt {

// The attention of one image.
struct EncoderAttention {
  size_t positions, heads, width;  // width: floats of a head
  const float* qkv;                // (positions, 3, heads, width): query, key, value
  float scale;                     // of scores
  float* out;                      // (positions, heads, width)
};

// An implementation for one instruction set. Scores are computed with 16 bits of mantissa, probabilities and values
// have 8 (bfloat16): |error| <= 1 % of the largest value of a head.
struct EncoderAttentionKernel {
  const char* name;
  // Bytes of scratch that one head needs, at a multiple of 64.
  size_t (*scratch_size)(const EncoderAttention& attention);
  void (*attend)(const EncoderAttention& attention, size_t head, uint8_t* scratch);
};

// The kernel for this processor. Returns nullptr where ONNX Runtime's operators are as fast.
const EncoderAttentionKernel* encoder_attention_kernel();

}  // namespace blip2rt
