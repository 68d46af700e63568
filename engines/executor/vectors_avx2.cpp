// The loops over floats in AVX2.
#if defined(__x86_64__)
#include "kernels/target.h"

BLIP2RT_TARGET("avx2,fma")

#define BLIP2RT_LANES 8
#define BLIP2RT_ROWS 6
#include "executor/vector_loops.h"

namespace blip2rt {

extern const VectorLoops kVectorLoopsAvx2 = BLIP2RT_VECTOR_LOOPS("avx2");

}  // namespace blip2rt
BLIP2RT_TARGET_END
#endif
