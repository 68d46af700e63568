// Detects the processor's instruction sets and lists the kernels that it can run.
#pragma once

#include <cstddef>
#include <cstring>
#include <initializer_list>

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

inline bool has_avx_vnni() {  // older compilers do not know its name
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kFeatures = 7, kMore = 1, kAvxVnni = 1u << 4;
  return has_avx2() && __get_cpuid_count(kFeatures, kMore, &eax, &ebx, &ecx, &edx) != 0 && (eax & kAvxVnni) != 0;
}

// Returns whether AMX (int8, bfloat16) and AVX-512 can be used. Linux grants AMX only on request.
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

// The kernels that this processor can run, the best one first.
template <class Kernel>
class KernelList {
 public:
  struct Entry {
    bool is_supported;
    const Kernel& kernel;
  };

  KernelList(std::initializer_list<Entry> entries) {
    for (const Entry& entry : entries) {
      if (entry.is_supported) kernels_[count_++] = &entry.kernel;
    }
  }

  // Returns the kernel of this name, or the best one if `name` is nullptr; nullptr if there is none.
  const Kernel* find(const char* name) const {
    for (size_t i = 0; i < count_; ++i) {
      if (name == nullptr || std::strcmp(kernels_[i]->name, name) == 0) return kernels_[i];
    }
    return nullptr;
  }

 private:
  const Kernel* kernels_[4] = {};
  size_t count_ = 0;
};

}  // namespace blip2rt
