// Asks the processor for its instruction sets, and keeps the kernels that it can run. Knows nothing of products.
#pragma once

#include <cstddef>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace blip2rt {

#if defined(__x86_64__)
inline bool has_avx512_vnni() {
  return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

inline bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

inline bool has_avx_vnni() {  // older compilers have no name for it
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kFeatures = 7, kMore = 1, kAvxVnni = 1u << 4;
  return has_avx2() && __get_cpuid_count(kFeatures, kMore, &eax, &ebx, &ecx, &edx) != 0 && (eax & kAvxVnni) != 0;
}

// Returns whether the processor has AMX and AVX-512 for int8 and bfloat16. Asks Linux for AMX's tiles, and returns
// false where it refuses them.
inline bool may_use_amx() {
#if defined(__linux__)
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kFeatures = 7, kAmx = 1u << 22 | 1u << 24 | 1u << 25;  // bfloat16, tiles, int8
  constexpr long kRequest = 0x1023, kTileData = 18;                         // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return has_avx512_vnni() && __builtin_cpu_supports("avx512bf16") &&
         __get_cpuid_count(kFeatures, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & kAmx) == kAmx &&
         syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}
#elif defined(__aarch64__) && defined(__linux__)
inline bool has_dot_product() {
  constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP
  return (getauxval(AT_HWCAP) & kDotProduct) != 0;
}
#endif

// The kernels that were added, the best one first.
template <class Kernel>
class KernelChoice {
 public:
  void add(const Kernel& kernel) { found_[count_++] = &kernel; }

  const Kernel* best() const { return found_[0]; }

  const Kernel* named(const char* name) const {
    for (const Kernel* kernel : found_) {
      if (kernel != nullptr && std::strcmp(kernel->name, name) == 0) return kernel;
    }
    return nullptr;
  }

 private:
  const Kernel* found_[4] = {};
  size_t count_ = 0;
};

}  // namespace blip2rt
