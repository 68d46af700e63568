// Chooses the kernel for the processor that runs. Knows instruction sets by name.
#include "int4_matmul.h"

#include <cstring>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace blip2rt {

size_t Int4Kernel::scratch_size(const Int4Matrix& matrix) const {
  return tile * matrix.blocks() * (2 * sizeof(float) + matrix.block);
}

#if defined(__x86_64__)
extern const Int4Kernel kInt4Avx512, kInt4Avx2;
#elif defined(__aarch64__) && defined(__linux__)
extern const Int4Kernel kInt4Neon;
#endif

namespace {

// Best first, nullptr behind the last that this processor has.
struct Kernels {
  const Int4Kernel* found[3] = {};
  Kernels() {
    size_t count = 0;
    const auto add = [&](const Int4Kernel& kernel) { found[count++] = &kernel; };
    (void)add;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      add(kInt4Avx512);
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) add(kInt4Avx2);
#elif defined(__aarch64__) && defined(__linux__)
    constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP
    if ((getauxval(AT_HWCAP) & kDotProduct) != 0) add(kInt4Neon);
#endif
  }
};

const Kernels& kernels() {
  static const Kernels found;
  return found;
}

}  // namespace

const Int4Kernel* int4_kernel() { return kernels().found[0]; }

const Int4Kernel* int4_kernel(const char* name) {
  for (const Int4Kernel* kernel : kernels().found) {
    if (kernel != nullptr && std::strcmp(kernel->name, name) == 0) return kernel;
  }
  return nullptr;
}

}  // namespace blip2rt
