// Detects the processor's instruction sets and lists the kernels that it can run.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <iterator>

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

// The instruction sets that kernels are written for, from the least to the most. BLIP2RT_KERNELS names the highest one
// to use.
#if defined(__x86_64__)
enum class Level { kPlain, kAvx2, kAvxVnni, kAvx512, kAmx };
inline constexpr const char* kLevelNames[] = {"plain", "avx2", "avxvnni", "avx512", "amx"};

inline bool supports(Level level) {
  constexpr unsigned kFeatures = 7;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  switch (level) {
    case Level::kPlain: return true;
    case Level::kAvx2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Level::kAvxVnni: {  // older compilers do not know its name
      constexpr unsigned kMore = 1, kAvxVnni = 1u << 4;
      return supports(Level::kAvx2) && __get_cpuid_count(kFeatures, kMore, &eax, &ebx, &ecx, &edx) != 0 &&
             (eax & kAvxVnni) != 0;
    }
    case Level::kAvx512:
      return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case Level::kAmx: {
#if defined(__linux__)
      constexpr unsigned kAmx = 1u << 22 | 1u << 24 | 1u << 25;  // bfloat16, tiles, int8
      constexpr long kRequest = 0x1023, kTileData = 18;          // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
      return supports(Level::kAvx512) && __builtin_cpu_supports("avx512bf16") &&
             __get_cpuid_count(kFeatures, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & kAmx) == kAmx &&
             syscall(SYS_arch_prctl, kRequest, kTileData) == 0;  // Linux grants AMX only on request
#endif
      break;
    }
  }
  return false;
}
#elif defined(__aarch64__)
enum class Level { kPlain, kNeon, kDotProduct };
inline constexpr const char* kLevelNames[] = {"plain", "neon", "dotprod"};

inline bool supports(Level level) {
#if defined(__linux__)
  constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP
  if (level == Level::kDotProduct) return (getauxval(AT_HWCAP) & kDotProduct) != 0;
#endif
  return level != Level::kDotProduct;
}
#else
enum class Level { kPlain };
inline constexpr const char* kLevelNames[] = {"plain"};

inline bool supports(Level) { return true; }
#endif

// Returns whether kernels of a level may run: the processor supports it, and BLIP2RT_KERNELS does not exclude it. A
// value that names no level excludes nothing; blip2rt.load rejects it. The C library reads no environment.
inline bool may_use(Level level) {
#if defined(BLIP2RT_NO_ENVIRONMENT)
  static const char* const name = nullptr;
#else
  static const char* const name = std::getenv("BLIP2RT_KERNELS");
#endif
  for (size_t i = 0; name != nullptr && i < std::size(kLevelNames); ++i) {
    if (std::strcmp(kLevelNames[i], name) == 0 && static_cast<size_t>(level) > i) return false;
  }
  return supports(level);
}

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
