// attention_tile.h in the instructions that every processor of the kind has: SSE2, NEON.
#define BLIP2RT_LANES 4
#include "kernels/attention/attention_tile.h"

namespace blip2rt {

extern const AttentionKernel kAttentionPlain = {"plain", append, attend};

}  // namespace blip2rt
