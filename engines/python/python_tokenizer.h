// Tokenizers as a Python class.
#pragma once

#include <nanobind/nanobind.h>

namespace blip2rt {

void add_tokenizer(nanobind::module_& m);

}  // namespace blip2rt
