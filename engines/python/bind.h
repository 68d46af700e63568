// The parts of the module blip2rt._native, one for each folder that they bind.
#pragma once

#include <nanobind/nanobind.h>

#include "python/gil.h"

namespace blip2rt {

// Of a function that touches no object of Python: it runs without the GIL, between reading arguments and its result.
using WithoutGil = nanobind::call_guard<ReleasedGil>;

void bind_kernels(nanobind::module_& m);
void bind_graphs(nanobind::module_& m);
void bind_search(nanobind::module_& m);
void bind_loop(nanobind::module_& m);
void bind_batcher(nanobind::module_& m);
void bind_text(nanobind::module_& m);
void bind_bundle(nanobind::module_& m);
void bind_language(nanobind::module_& m);
void bind_tokenizers(nanobind::module_& m);
void bind_runtime(nanobind::module_& m);

}  // namespace blip2rt
