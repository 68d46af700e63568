// Chooses the encoder attention kernel for this processor.
#include "kernels/attention/encoder_attention.h"

#include "kernels/dispatch.h"

namespace blip2rt {

#if defined(__x86_64__)
extern const EncoderAttentionKernel kEncoderAttentionAmx;
#endif

const EncoderAttentionKernel* encoder_attention_kernel() {
#if defined(__x86_64__)
  static const bool has_amx = may_use(Level::kAmx);
  if (has_amx) return &kEncoderAttentionAmx;
#endif
  return nullptr;
}

}  // namespace blip2rt
