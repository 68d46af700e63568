// Compiles attention_tile.h for AVX2.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define BLIP2RT_LANES 8
#include "kernels/attention/attention_tile.h"

namespace blip2rt {

extern const AttentionKernel kAttentionAvx2 = {"avx2", append, attend};

}  // namespace blip2rt
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
