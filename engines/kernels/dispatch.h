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
#elif defined(__aarch64__) && defined(_WIN32)
extern "C" __declspec(dllimport) int __stdcall IsProcessorFeaturePresent(unsigned long feature);
#endif

namespace blip2rt {

// The instruction sets that kernels are written for, from the least to the most. BLIP2RT_KERNELS names the highest one
// to use.
#if defined(__x86_64__)
enum class Level { kPlain, kSse41, kAvx2, kAvxVnni, kAvx512, kAmx };
inline constexpr const char* kLevelNames[] = {"plain", "sse41", "avx2", "avxvnni", "avx512", "amx"};

struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

// Returns zeros for a leaf that the processor does not have. Compilers' own tests need a library that Windows lacks.
inline Registers processor_features(unsigned leaf, unsigned subleaf) {
  Registers found;
  return __get_cpuid_count(leaf, subleaf, &found.a, &found.b, &found.c, &found.d) != 0 ? found : Registers();
}

// Returns which registers the operating system saves.
inline unsigned saved_registers() {
  constexpr unsigned kOsSaves = 1u << 27;
  if ((processor_features(1, 0).c & kOsSaves) == 0) return 0;
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

// Returns an instruction set that NumPy and ONNX Runtime need and the processor lacks; nullptr if it has all.
inline const char* missing_baseline() {
  constexpr unsigned kSsse3 = 1u << 9, kSse41 = 1u << 19, kSse42 = 1u << 20, kPopcnt = 1u << 23;
  const unsigned found = processor_features(1, 0).c;
  return (found & kSsse3) == 0    ? "SSSE3"
         : (found & kSse41) == 0  ? "SSE4.1"
         : (found & kSse42) == 0  ? "SSE4.2"
         : (found & kPopcnt) == 0 ? "POPCNT"
                                  : nullptr;
}

inline bool supports(Level level) {
  constexpr unsigned kFma = 1u << 12, kAvx2 = 1u << 5, kAvxVnni = 1u << 4;
  constexpr unsigned kAvx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31, kVnni = 1u << 11;  // F, DQ, BW, VL
  constexpr unsigned kYmm = 0x06, kZmm = 0xe6;
  const auto saves = [](unsigned registers) { return (saved_registers() & registers) == registers; };
  const Registers features = processor_features(7, 0), more = processor_features(7, 1);
  switch (level) {
    case Level::kPlain: return true;
    case Level::kSse41: return missing_baseline() == nullptr;
    case Level::kAvx2: return saves(kYmm) && (features.b & kAvx2) != 0 && (processor_features(1, 0).c & kFma) != 0;
    case Level::kAvxVnni: return supports(Level::kAvx2) && (more.a & kAvxVnni) != 0;
    case Level::kAvx512:
      return supports(Level::kAvx2) && saves(kZmm) && (features.b & kAvx512) == kAvx512 && (features.c & kVnni) != 0;
    case Level::kAmx: {
#if defined(__linux__)
      constexpr unsigned kBfloat16 = 1u << 5, kAmx = 1u << 22 | 1u << 24 | 1u << 25;  // bfloat16, tiles, int8
      constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
      return supports(Level::kAvx512) && (more.a & kBfloat16) != 0 && (features.d & kAmx) == kAmx &&
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
  if (level != Level::kDotProduct) return true;
#if defined(__linux__)
  constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP
  return (getauxval(AT_HWCAP) & kDotProduct) != 0;
#elif defined(_WIN32)
  constexpr unsigned long kDotProduct = 43;  // PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE
  return IsProcessorFeaturePresent(kDotProduct) != 0;
#elif defined(__APPLE__)
  return true;  // every Mac with Apple silicon
#else
  return false;
#endif
}
#elif defined(__wasm_simd128__)
enum class Level { kPlain, kSimd128 };
inline constexpr const char* kLevelNames[] = {"plain", "simd128"};

inline bool supports(Level) { return true; }
#else
enum class Level { kPlain };
inline constexpr const char* kLevelNames[] = {"plain"};

inline bool supports(Level) { return true; }
#endif

#if !defined(__x86_64__)
inline const char* missing_baseline() { return nullptr; }
#endif

// Whether BLIP2RT_KERNELS is read. The C library sets it to false before the first kernel is chosen.
inline bool reads_environment = true;

// Returns whether kernels of a level may run: the processor supports it, and BLIP2RT_KERNELS does not exclude it. A
// value that names no level excludes nothing; blip2rt.load rejects it.
inline bool may_use(Level level) {
  static const char* const name = reads_environment ? std::getenv("BLIP2RT_KERNELS") : nullptr;
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
  const Kernel* kernels_[5] = {};
  size_t count_ = 0;
};

}  // namespace blip2rt
