// The attention kernel in AVX2.
#if defined(__x86_64__)
#include "kernels/target.h"

BLIP2RT_TARGET("avx2,fma")

#define BLIP2RT_LANES 8
#include "kernels/attention/attention_tile.h"

namespace blip2rt {

extern const AttentionKernel kAttentionAvx2 = {"avx2", append, attend};

}  // namespace blip2rt
BLIP2RT_TARGET_END
#endif
