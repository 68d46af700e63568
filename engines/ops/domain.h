// The domain of our operators.
#pragma once

#include <vector>

#include "ops/custom_op.h"
#include "ort/ort_api.h"

namespace blip2rt {

constexpr char kDomain[] = "blip2rt";

const std::vector<OperatorType>& operator_types();

// Registers all custom operators with sessions created from these options.
void add_domain(OrtSessionOptions* options);

}  // namespace blip2rt
