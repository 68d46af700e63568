// The products of matmul.h in AVX2. Knows instructions only.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,f16c,fma")
#endif
#include "kernels/int4/avx2.h"

namespace blip2rt {

extern const Int4Kernel kInt4Avx2 = {"avx2", Avx2::kLanes, Avx2::kAcross, quantize<Avx2>, multiply<Avx2>};

}  // namespace blip2rt
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
