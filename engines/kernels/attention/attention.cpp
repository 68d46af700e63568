// Chooses the kernel for this processor. Knows instruction sets by name.
#include "kernels/attention/attention.h"

#include "kernels/dispatch.h"

namespace blip2rt {

size_t AttentionKernel::scratch_floats(const Attention& a) {
  return kQueryBlock * (2 * a.width + a.max_visible() + Attention::kUnit);
}

extern const AttentionKernel kAttentionPlain;
#if defined(__x86_64__)
extern const AttentionKernel kAttentionAvx2;
#endif

namespace {

const KernelChoice<AttentionKernel>& kernels() {
  static const KernelChoice<AttentionKernel> found = [] {
    KernelChoice<AttentionKernel> choice;
#if defined(__x86_64__)
    if (has_avx2()) choice.add(kAttentionAvx2);
#endif
    choice.add(kAttentionPlain);
    return choice;
  }();
  return found;
}

}  // namespace

const AttentionKernel& attention_kernel() { return *kernels().best(); }

const AttentionKernel* attention_kernel(const char* name) { return kernels().named(name); }

}  // namespace blip2rt
