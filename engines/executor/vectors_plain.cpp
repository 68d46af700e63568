// The loops over floats for the baseline instructions: SSE2 on x86-64, NEON on aarch64.
#define BLIP2RT_LANES 4
#define BLIP2RT_ROWS 6
#include "executor/vector_loops.h"

namespace blip2rt {

extern const VectorLoops kVectorLoopsPlain = BLIP2RT_VECTOR_LOOPS("plain");

}  // namespace blip2rt
