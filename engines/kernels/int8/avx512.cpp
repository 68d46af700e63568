// The products of matmul.h in AVX-512 with VNNI. Knows instructions only.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))), \
                             apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#endif
#include "kernels/int8/avx512.h"

namespace blip2rt {

extern const Int8Kernel kInt8Avx512 = kernel<Avx512>("avx512");

}  // namespace blip2rt
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
