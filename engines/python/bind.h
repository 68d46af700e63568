// The parts of the module blip2rt._native, one for each folder that they bind.
#pragma once

#include <nanobind/nanobind.h>

namespace blip2rt {

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
