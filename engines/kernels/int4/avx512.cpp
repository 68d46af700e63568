// The products of matmul.h in AVX-512 with VNNI. Knows instructions only.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))), \
                             apply_to = function)
#else
#pragma GCC target("avx2,f16c,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#endif
#include "kernels/int4/avx512.h"

namespace blip2rt {

extern const Int4Kernel kInt4Avx512 = {"avx512", Avx512::kLanes, Avx512::kAcross, quantize<Avx512>, multiply<Avx512>};

}  // namespace blip2rt
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
