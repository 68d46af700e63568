// Chooses the attention kernel for this processor.
#include "kernels/attention/attention.h"

#include "kernels/dispatch.h"

namespace blip2rt {

size_t AttentionKernel::scratch_floats(const Attention& a) {
  return kQueryBlock * (2 * a.width + a.max_visible() + Attention::kWidthMultiple);
}

extern const AttentionKernel kAttentionPlain;
#if defined(__x86_64__)
extern const AttentionKernel kAttentionAvx2;
#endif

const AttentionKernel* attention_kernel(const char* name) {
  static const KernelList<AttentionKernel> kernels = {
#if defined(__x86_64__)
      {may_use(Level::kAvx2), kAttentionAvx2},
#endif
      {true, kAttentionPlain},
  };
  return kernels.find(name);
}

}  // namespace blip2rt
