// Chooses the int8 kernel for this processor.
#include "kernels/int8/matmul.h"

#include <algorithm>

#include "kernels/dispatch.h"

#if defined(__linux__)
#include <unistd.h>
#endif

namespace blip2rt {

#if defined(__x86_64__)
extern const Int8Kernel kInt8Amx, kInt8Avx512, kInt8AvxVnni, kInt8Avx2, kInt8Sse41;
#elif defined(__aarch64__)
extern const Int8Kernel kInt8DotProduct, kInt8Neon;
#elif defined(__wasm_simd128__)
extern const Int8Kernel kInt8Simd128;
#endif

namespace {

// Returns the size of a core's second-level cache in bytes.
size_t core_cache() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  static const long found = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (found > 0) return static_cast<size_t>(found);
#endif
  return size_t{1} << 20;
}

}  // namespace

size_t Int8Kernel::tiles_per_call(size_t k) const {
  const size_t room = core_cache() / 8 * 3;  // the rest is for activations and the next tiles
  return std::max<size_t>(1, std::min(max_tiles, room / (tile * value_size * round_up_to_line(k))));
}

const Int8Kernel* int8_kernel(const char* name) {
  static const KernelList<Int8Kernel> kernels = {
#if defined(__x86_64__)
      {may_use(Level::kAmx), kInt8Amx},         {may_use(Level::kAvx512), kInt8Avx512},
      {may_use(Level::kAvxVnni), kInt8AvxVnni}, {may_use(Level::kAvx2), kInt8Avx2},
      {may_use(Level::kSse41), kInt8Sse41},
#elif defined(__aarch64__)
      {may_use(Level::kDotProduct), kInt8DotProduct},
      {may_use(Level::kNeon), kInt8Neon},
#elif defined(__wasm_simd128__)
      {may_use(Level::kSimd128), kInt8Simd128},
#endif
  };
  return kernels.find(name);
}

}  // namespace blip2rt
