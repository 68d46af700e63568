// The products of matmul.h in AVX2. Knows instructions only.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#include "kernels/int8/avx2.h"

namespace blip2rt {

extern const Int8Kernel kInt8Avx2 = kernel<Avx2>("avx2");

}  // namespace blip2rt
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
