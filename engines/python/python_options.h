// Turns a dict of options into GenerationOptions. Knows the options' names in Python.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>

#include "search/options.h"

namespace blip2rt {

// Throws std::runtime_error with every fault: unknown names, wrong types, values that make no sense.
GenerationOptions options_from(const nanobind::dict& given, size_t vocab_size);

}  // namespace blip2rt
