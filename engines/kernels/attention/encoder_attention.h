// Attention between all positions of an image. Reads queries, keys and values as one product writes them, interleaved
// by position.
#pragma once

#include <cstddef>
#include <cstdint>

namespace blip2rt {

// The attention of one image.
struct EncoderAttention {
  size_t positions, heads, width;  // width: floats of a head
  const float* qkv;                // (positions, 3, heads, width): query, key, value
  float scale;                     // scale of the scores
  float* out;                      // (positions, heads, width)
};

// An implementation for one instruction set. Scores have 16 bits of mantissa, probabilities and values 8 (bfloat16):
// |error| <= 1 % of a head's largest value.
struct EncoderAttentionKernel {
  const char* name;
  // The bytes of scratch for one head, 64-byte aligned.
  size_t (*scratch_size)(const EncoderAttention& attention);
  void (*attend)(const EncoderAttention& attention, size_t head, uint8_t* scratch);
};

// Returns the kernel for this processor, or nullptr if ONNX Runtime's operators are as fast.
const EncoderAttentionKernel* encoder_attention_kernel();

}  // namespace blip2rt
