// The domain of our custom operators.
#pragma once

#include "ort/ort_api.h"

namespace blip2rt {

constexpr char kDomain[] = "blip2rt";

// Registers all custom operators with sessions created from these options.
void add_domain(OrtSessionOptions* options);

}  // namespace blip2rt
