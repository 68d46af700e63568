// Sessions of ONNX Runtime: turns numpy arrays into its tensors and back without copying.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>

#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/system.h"
#include "executor/core_graph.h"
#include "graphs/graph_file.h"
#include "graphs/session.h"
#include "ort/ort_api.h"
#include "python/bind.h"
#include "python/casters.h"
#include "python/gil.h"
#include "python/python_graph.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace blip2rt {
namespace {

using Array = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;

DType dtype_of(nb::dlpack::dtype dtype) {
  for (const auto& [ours, theirs] :
       {std::pair{DType::kFloat32, nb::dtype<float>()}, std::pair{DType::kFloat64, nb::dtype<double>()},
        std::pair{DType::kInt64, nb::dtype<int64_t>()}, std::pair{DType::kInt32, nb::dtype<int32_t>()},
        std::pair{DType::kUInt8, nb::dtype<uint8_t>()}, std::pair{DType::kInt8, nb::dtype<int8_t>()},
        std::pair{DType::kBool, nb::dtype<bool>()}}) {
    if (dtype == theirs) return ours;
  }
  if (dtype.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Float) && dtype.bits == 16) return DType::kFloat16;
  return DType::kUndefined;
}

nb::dlpack::dtype dtype_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return nb::dtype<float>();
    case DType::kFloat64: return nb::dtype<double>();
    case DType::kInt64: return nb::dtype<int64_t>();
    case DType::kInt32: return nb::dtype<int32_t>();
    case DType::kUInt8: return nb::dtype<uint8_t>();
    case DType::kInt8: return nb::dtype<int8_t>();
    case DType::kBool: return nb::dtype<bool>();
    case DType::kFloat16: return {static_cast<uint8_t>(nb::dlpack::dtype_code::Float), 16, 1};
    case DType::kUndefined: break;
  }
  throw std::runtime_error("the graph returned a tensor of a type that numpy does not have");
}

std::string port_names(const std::vector<Port>& ports) {
  std::string names;
  for (const Port& port : ports) names += (names.empty() ? "" : ", ") + port.name;
  return names;
}

// An input. It keeps Python's array alive, because the tensor borrows its memory.
struct Feed {
  const Port* port;
  Array array;
  TensorView view;
};

Feed make_feed(const Session& session, const std::string& name, nb::handle object) {
  const Port* port = session.find_input(name);
  if (port == nullptr) {
    throw std::runtime_error("no input named '" + name + "' in " + session.path() + "; it has " +
                             port_names(session.inputs()));
  }
  Array array;
  if (!nb::try_cast(object, array)) {
    throw std::runtime_error("input '" + name + "' must be a numpy array");
  }
  std::vector<int64_t> shape;
  for (size_t i = 0; i < array.ndim(); ++i) shape.push_back(static_cast<int64_t>(array.shape(i)));
  const DType dtype = dtype_of(array.dtype());
  bool fits = dtype == port->tensor.dtype && shape.size() == port->tensor.shape.size();
  for (size_t i = 0; fits && i < shape.size(); ++i) {
    fits = port->tensor.shape[i] < 0 || port->tensor.shape[i] == shape[i];
  }
  if (!fits) {
    throw std::runtime_error("input '" + name + "' is " + dtype_name(dtype) + " " + shape_text(shape) + ", but " +
                             session.path() + " takes " + dtype_name(port->tensor.dtype) + " " +
                             shape_text(port->tensor.shape));
  }
  const TensorView view(const_cast<void*>(array.data()), shape, dtype);
  return {port, std::move(array), view};
}

// Wraps a tensor without a copy: the array owns it.
nb::object to_numpy(OwnedTensor tensor) {
  const TensorView& view = tensor.view;
  const std::vector<size_t> shape(view.axes, view.axes + view.rank);
  auto owned = std::make_unique<std::shared_ptr<void>>(std::move(tensor.memory));
  nb::capsule owner(owned.release(), [](void* p) noexcept { delete static_cast<std::shared_ptr<void>*>(p); });
  return nb::cast(nb::ndarray<nb::numpy>(view.data, shape.size(), shape.data(), owner, nullptr, dtype_of(view.dtype)));
}

// Runs a session on arrays by name; checks each against the graph's inputs. Releases the GIL while it runs.
nb::dict run(const Session& session, const nb::dict& feeds, const std::optional<std::vector<std::string>>& outputs) {
  if (session.is_loop_only()) {
    throw std::runtime_error(session.path() + " is run by the loop alone: it reads rows behind those of its tensors");
  }
  std::vector<Feed> held;
  for (auto [name, object] : feeds) {
    std::string text;
    if (!nb::detail::read_text(name, text)) throw nb::type_error("an input's name is not a string");
    held.push_back(make_feed(session, text, object));
  }
  for (const Port& port : session.inputs()) {
    if (!feeds.contains(port.name.c_str())) {
      throw std::runtime_error("input '" + port.name + "' of " + session.path() + " is missing");
    }
  }
  std::vector<const char*> output_names;
  NamedTensors inputs;
  for (const Feed& feed : held) inputs.emplace_back(feed.port->name.c_str(), feed.view);
  if (outputs) {
    for (const std::string& name : *outputs) {
      const Port* port = session.find_output(name);
      if (port == nullptr) {
        throw std::runtime_error("no output named '" + name + "' in " + session.path() + "; it has " +
                                 port_names(session.outputs()));
      }
      output_names.push_back(port->name.c_str());
    }
  } else {
    for (const Port& port : session.outputs()) output_names.push_back(port.name.c_str());
  }
  std::vector<OwnedTensor> values;
  {
    const ReleasedGil released;
    values = session.run(inputs, output_names);
  }
  nb::dict result;
  for (size_t i = 0; i < values.size(); ++i) result[output_names[i]] = to_numpy(std::move(values[i]));
  return result;
}

using PortTuple = std::tuple<std::string, std::string, std::vector<int64_t>>;

std::vector<PortTuple> port_tuples(const std::vector<Port>& ports) {
  std::vector<PortTuple> tuples;
  for (const Port& port : ports) tuples.emplace_back(port.name, dtype_name(port.tensor.dtype), port.tensor.shape);
  return tuples;
}

// A handle for ONNX Runtime, which load_onnxruntime has loaded for the process.
struct Runtime {};

}  // namespace

void bind_graphs(nb::module_& m) {
  m.def(
      "check_graph",
      [](const std::string& graph_path, const AllowedFiles& files, bool trusted) {
        read_graph(graph_path, files, trusted ? OperatorRules::kTrusted : OperatorRules::kEveryEngine);
      },
      WithoutGil(), "graph_path"_a, "files"_a = nb::none(), "trusted"_a = false,
      "Raise GraphError if a graph's file is damaged, uses the core's own operators, or refers to other files. files: "
      "the files next to the graph that it may read, and their sizes; None allows every regular file there. trusted: "
      "allow operators that exports do not write, which can end the process.");

  nb::class_<Runtime>(m, "Runtime")
      .def(
          "__init__",
          [](Runtime* self, const std::string& library_path) {
            load_onnxruntime(library_path);
            new (self) Runtime();
          },
          "library_path"_a)
      .def_prop_ro("version", [](const Runtime&) { return ort_version(); });

  nb::class_<Session>(m, "Session")
      .def(
          "__init__",
          [](Session* self, const Runtime* runtime, const std::string& graph_path, int intra_op_threads,
             bool custom_int4, bool custom_int8, bool custom_attention, const AllowedFiles& files, bool trusted,
             const OutputShapes& shapes, double run_timeout) {
            const ReleasedGil released;
            const CustomOps ops = {custom_int4, custom_int8, custom_attention};
            new (self) Session(graph_path, intra_op_threads, ops, files, trusted,
                               runtime == nullptr ? open_with_executor : open_with_onnxruntime, shapes, run_timeout);
          },
          nb::arg("runtime").none(), "graph_path"_a, "intra_op_threads"_a = 0, "custom_int4"_a = true,
          "custom_int8"_a = true, "custom_attention"_a = true, "files"_a = nb::none(), "trusted"_a = false,
          "shapes"_a = nb::dict(), "run_timeout"_a = 0,
          "Load a graph. Raises RuntimeError with ONNX Runtime's message, or GraphError like check_graph. "
          "runtime None: the core's executor runs it. "
          "intra_op_threads: 0 leaves the number to ONNX Runtime, which takes one per physical core. custom_int4, "
          "custom_int8, custom_attention: run such nodes with the core's operators if it has a kernel for them. int8 "
          "includes an encoder's attention, in bfloat16. shapes: of outputs, which run compares with what the graph "
          "returns; -1 for an axis of any size. "
          "run_timeout: seconds of one run; 0 chooses by the size of a graph whose files are given and that is not "
          "trusted.")
      .def_static(
          "over",
          [](const std::string& name, nb::object engine, const OutputShapes& shapes) {
            return std::make_unique<Session>(name, make_python_graph(std::move(engine)), shapes);
          },
          "name"_a, "engine"_a, "shapes"_a = nb::dict(),
          "Take a graph that an engine in Python runs, see engines/python/python_graph.h. name: for messages.")
      .def_prop_ro(
          "inputs", [](const Session& self) { return port_tuples(self.inputs()); },
          "(name, dtype, shape); -1 for a dynamic axis.")
      .def_prop_ro("outputs", [](const Session& self) { return port_tuples(self.outputs()); })
      .def_prop_ro(
          "custom_kernels", [](const Session& self) { return self.custom_kernels(); },
          "The kernels that run in place of ONNX Runtime's, such as \"int4 avx512\".")
      .def("release_weights", &Session::release_weights,
           "Take the mapped weights out of the process's memory, until a run reads them from the system's cache.")
      .def("run", &run, "feeds"_a, "outputs"_a = nb::none(),
           "Run the graph on arrays by name. Return outputs by name; None returns all of them.");
  m.def("return_memory", &return_memory, "Give freed memory back to the system.");
  m.def("prefers_executor", &prefers_executor, "precisions"_a,
        "Return whether the core runs graphs of these precisions at least as fast as ONNX Runtime on this processor.");
}

}  // namespace blip2rt
