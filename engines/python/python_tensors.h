// Turns numpy arrays into ONNX Runtime's tensors and back without copying.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <optional>
#include <string>
#include <vector>

#include "graphs/session.h"

namespace blip2rt {

// Runs a session on arrays by name; checks each against the graph's inputs. Releases the GIL while it runs.
nanobind::dict run(const Session& session, const nanobind::dict& feeds,
                   const std::optional<std::vector<std::string>>& outputs);

}  // namespace blip2rt
