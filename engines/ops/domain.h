// The domain of our operators in ONNX Runtime.
#pragma once

#include "ort/ort_api.h"

namespace blip2rt {

constexpr char kDomain[] = "blip2rt";

// Makes every operator of ours known to the sessions that these options create.
void add_domain(OrtSessionOptions* options);

}  // namespace blip2rt
