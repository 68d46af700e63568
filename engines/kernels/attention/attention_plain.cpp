// The attention kernel for the baseline instructions: SSE2 on x86-64, NEON on aarch64.
#define BLIP2RT_LANES 4
#include "kernels/attention/attention_tile.h"

namespace blip2rt {

extern const AttentionKernel kAttentionPlain = {"plain", append, attend};

}  // namespace blip2rt
