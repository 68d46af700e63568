// Chooses the kernel for the processor that runs. Knows instruction sets by name.
#include "int8_matmul.h"

#include "kernel_choice.h"

namespace blip2rt {

#if defined(__x86_64__)
extern const Int8Kernel kInt8Amx, kInt8Avx512, kInt8AvxVnni;
#endif

namespace {

const KernelChoice<Int8Kernel>& kernels() {
  static const KernelChoice<Int8Kernel> found = [] {
    KernelChoice<Int8Kernel> choice;
#if defined(__x86_64__)
    if (has_avx512_vnni() && may_use_amx()) choice.add(kInt8Amx);
    if (has_avx512_vnni()) choice.add(kInt8Avx512);
    if (has_avx_vnni()) choice.add(kInt8AvxVnni);
#endif
    return choice;
  }();
  return found;
}

}  // namespace

const Int8Kernel* int8_kernel() { return kernels().best(); }

const Int8Kernel* int8_kernel(const char* name) { return kernels().named(name); }

}  // namespace blip2rt
