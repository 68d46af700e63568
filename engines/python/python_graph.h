// A graph that an engine in Python runs, as the core's RuntimeGraph.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>

#include "graphs/session.h"

namespace blip2rt {

// `engine` has, with a Port = (name, dtype, shape with -1 for a dynamic axis) and a Tensor = (name, address, shape):
//   inputs, outputs: list[Port], max_rows: int              see RuntimeGraph
//   run(inputs: list[Tensor], outputs: list[str]) -> list   contiguous arrays, in the order of `outputs`
//   bind(inputs: list[Tensor], outputs: list[Tensor])       -> run(), which reads and writes there; keys and values lie
//                                                           in the engine's memory
//   allocate(bytes) -> address, release(address), copy(block)    see Memory; block: (from, to, bytes, heads, tensors)
//                                                           with ends (address, head, tensor, on_host)
// What it raises becomes std::runtime_error with the same message, unless it is no Exception, such as
// KeyboardInterrupt.
std::unique_ptr<RuntimeGraph> make_python_graph(nanobind::object engine);

// Calls a function with the GIL, which the caller holds, also while the interpreter exits.
nanobind::object call_python(nanobind::handle function, const nanobind::tuple& arguments);

// Keeps an object that may be dropped without the GIL.
std::shared_ptr<nanobind::object> shared_object(nanobind::object object);

}  // namespace blip2rt
