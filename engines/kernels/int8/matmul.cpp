// Chooses the kernel for this processor. Knows instruction sets by name.
#include "kernels/int8/matmul.h"

#include <unistd.h>

#include <algorithm>

#include "kernels/dispatch.h"

namespace blip2rt {

#if defined(__x86_64__)
extern const Int8Kernel kInt8Amx, kInt8Avx512, kInt8AvxVnni, kInt8Avx2;
#elif defined(__aarch64__) && defined(__linux__)
extern const Int8Kernel kInt8Neon;
#endif

namespace {

const KernelChoice<Int8Kernel>& kernels() {
  static const KernelChoice<Int8Kernel> found = [] {
    KernelChoice<Int8Kernel> choice;
#if defined(__x86_64__)
    if (may_use_amx()) choice.add(kInt8Amx);
    if (has_avx512_vnni()) choice.add(kInt8Avx512);
    if (has_avx_vnni()) choice.add(kInt8AvxVnni);
    if (has_avx2()) choice.add(kInt8Avx2);
#elif defined(__aarch64__) && defined(__linux__)
    if (has_dot_product()) choice.add(kInt8Neon);
#endif
    return choice;
  }();
  return found;
}

// Returns the bytes of a core's second-level cache.
size_t core_cache() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  static const long found = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (found > 0) return static_cast<size_t>(found);
#endif
  return size_t{1} << 20;
}

}  // namespace

size_t Int8Kernel::tiles_together(size_t k) const {
  const size_t room = core_cache() / 8 * 3;  // the rest is the activations' and the next tiles'
  return std::max<size_t>(1, std::min(together, room / (tile * value_size * whole_lines(k))));
}

const Int8Kernel* int8_kernel() { return kernels().best(); }

const Int8Kernel* int8_kernel(const char* name) { return kernels().named(name); }

}  // namespace blip2rt
