// The custom operator GatherRow. ONNX Runtime before 1.24 divides by zero, or reads out of bounds, if a GatherND's
// inputs differ in their first axis.
#pragma once

#include "ort/ort_api.h"

namespace blip2rt {

// GatherND with one batch axis: hidden (B,S,D) float32, index (B,1) or (B,1,1) int64 -> row index[b] of hidden[b],
// (B,D) or (B,1,D).
constexpr char kGatherRow[] = "GatherRow";

void add_gather_op(OrtCustomOpDomain* domain);

}  // namespace blip2rt
