// Chooses the kernel for the processor that runs. Knows instruction sets by name.
#include "int8_matmul.h"

#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace blip2rt {

#if defined(__x86_64__)
extern const Int8Kernel kInt8Avx512, kInt8AvxVnni;
#endif

namespace {

// Best first, nullptr behind the last that this processor has.
struct Kernels {
  const Int8Kernel* found[3] = {};
  Kernels() {
#if defined(__x86_64__)
    size_t count = 0;
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      found[count++] = &kInt8Avx512;
    }
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    constexpr unsigned kFeatures = 7, kMore = 1, kAvxVnni = 1u << 4;
    const bool vnni = __get_cpuid_count(kFeatures, kMore, &eax, &ebx, &ecx, &edx) != 0 && (eax & kAvxVnni) != 0;
    if (vnni && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found[count++] = &kInt8AvxVnni;
#endif
  }
};

const Kernels& kernels() {
  static const Kernels found;
  return found;
}

}  // namespace

const Int8Kernel* int8_kernel() { return kernels().found[0]; }

const Int8Kernel* int8_kernel(const char* name) {
  for (const Int8Kernel* kernel : kernels().found) {
    if (kernel != nullptr && std::strcmp(kernel->name, name) == 0) return kernel;
  }
  return nullptr;
}

}  // namespace blip2rt
