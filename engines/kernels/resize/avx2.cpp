// The arithmetic of kernel.h in AVX2. Knows instructions only.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#include "kernels/resize/avx2.h"

namespace blip2rt {

extern const ResizeKernel kResizeAvx2 = kernel<Avx2>("avx2");

}  // namespace blip2rt
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
