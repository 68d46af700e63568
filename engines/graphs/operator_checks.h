// Rejects graphs that exports do not write, before ONNX Runtime opens them: it would read out of bounds, abort, divide
// by zero or hang for many of them. Up to 1.24 it packs constant weights by a node's attributes alone; up to 1.25 at
// least it accepts a short bias.
#pragma once

#include <stdexcept>
#include <string_view>

#include "graphs/onnx_schema.h"

namespace blip2rt {

// Reports something that exports do not write. The message is a single line and names the node and its operator.
struct OperatorError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Throws OperatorError for a node that is not in the table of allowed operators; for weights that do not fit their
// product; for integers that may be divided by 0 or -1; for functions, training graphs and too many nodes. `found` is
// the result of scan_model. for_tensorrt: TensorRT may be what runs the model.
void check_operators(std::string_view model, const ModelContents& found, bool for_tensorrt);

}  // namespace blip2rt
