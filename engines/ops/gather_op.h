// The custom operator GatherRow. ONNX Runtime before 1.24 divides by zero, or reads out of bounds, if a GatherND's
// inputs differ in their first axis.
#pragma once

#include "ops/custom_op.h"

namespace blip2rt {

// GatherND with one batch axis: hidden (B,S,D) float32, index (B,1) or (B,1,1) int64[, rows (R) int32] -> position
// index[b] of hidden[b] for every b, or for those in `rows`: (B or R,D) or (B or R,1,D).
constexpr char kGatherRow[] = "GatherRow";

// Input of the language model's graph, int32 (R): the rows whose logits the loop needs.
constexpr char kLogitRows[] = "logit_rows";

OperatorType gather_row_type();

}  // namespace blip2rt
