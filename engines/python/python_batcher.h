// The batcher as a Python class.
#pragma once

#include <nanobind/nanobind.h>

namespace blip2rt {

// Adds the classes Batcher and Submitted to the module.
void add_batcher(nanobind::module_& m);

}  // namespace blip2rt
