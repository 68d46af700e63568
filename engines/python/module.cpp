// The module blip2rt._native: the core as Python sees it. Checks arguments, releases the GIL and handles Ctrl-C.
#include <nanobind/nanobind.h>

#include "graphs/graph_file.h"
#include "ort/active_call.h"
#include "python/bind.h"
#include "python/casters.h"
#include "python/errors.h"

namespace nb = nanobind;
using namespace nb::literals;

NB_MODULE(_native, m) {
  using namespace blip2rt;
  m.doc() = "ONNX Runtime sessions and the generation loop";
  nb::set_leak_warnings(false);  // a daemon thread may hold a model when the interpreter ends
  nb::register_exception_translator(&translate_error);
  nb::exception<GraphError>(m, "GraphError", nb::module_::import_("blip2rt.errors").attr("BundleError"));
  Py_AtExit(wait_for_calls);
  bind_kernels(m);
  bind_graphs(m);
  bind_search(m);
  bind_loop(m);
  bind_batcher(m);
  bind_text(m);
  bind_bundle(m);
  bind_language(m);
  bind_tokenizers(m);
  bind_runtime(m);
}
