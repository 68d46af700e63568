// The loops over floats in AVX-512.
#if defined(__x86_64__)
#include "kernels/target.h"

BLIP2RT_TARGET("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")

#define BLIP2RT_LANES 16
#define BLIP2RT_ROWS 12
#include "executor/vector_loops.h"

namespace blip2rt {

extern const VectorLoops kVectorLoopsAvx512 = BLIP2RT_VECTOR_LOOPS("avx512");

}  // namespace blip2rt
BLIP2RT_TARGET_END
#endif
