// The parts of the module blip2rt._native, one for each folder that they bind.
#pragma once

#include <nanobind/nanobind.h>

namespace blip2rt {

void bind_bundle(nanobind::module_& m);
void bind_options(nanobind::module_& m);
void bind_language(nanobind::module_& m);
void bind_matching(nanobind::module_& m);
void bind_tokenizers(nanobind::module_& m);

}  // namespace blip2rt
