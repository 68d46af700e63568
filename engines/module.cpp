// blip2rt._native: the core as Python sees it. Checks what Python hands over, releases the GIL, and turns
// numpy arrays into tensors and back without copying. Knows no graph's meaning.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <optional>

#include "generator.h"
#include "ort_api.h"
#include "session.h"

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

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (int64_t axis : shape) text += (text.size() > 1 ? ", " : "") + (axis < 0 ? "?" : std::to_string(axis));
  return text + ")";
}

std::string port_names(const std::vector<Port>& ports) {
  std::string names;
  for (const Port& port : ports) names += (names.empty() ? "" : ", ") + port.name;
  return names;
}

// An input as Python gave it, and why it is kept: the tensor borrows the array's memory.
struct Feed {
  const Port* port;
  Array array;
  Value value;
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
  Value value = view(const_cast<void*>(array.data()), array.nbytes(), shape, dtype);
  return {port, std::move(array), std::move(value)};
}

// The array owns the tensor: no copy.
nb::object to_numpy(Value value) {
  const TensorInfo info = tensor_info(value.get());
  void* data = nullptr;
  check(ort().GetTensorMutableData(value.get(), &data));
  std::vector<size_t> shape(info.shape.begin(), info.shape.end());
  nb::capsule owner(value.release(), [](void* p) noexcept { ort().ReleaseValue(static_cast<OrtValue*>(p)); });
  return nb::cast(nb::ndarray<nb::numpy>(data, shape.size(), shape.data(), owner, nullptr, dtype_of(info.dtype)));
}

nb::dict run(const Session& session, const nb::dict& feeds, const std::optional<std::vector<std::string>>& outputs) {
  std::vector<Feed> held;
  for (auto [name, object] : feeds) held.push_back(make_feed(session, nb::cast<std::string>(name), object));
  for (const Port& port : session.inputs()) {
    if (!feeds.contains(port.name.c_str())) {
      throw std::runtime_error("input '" + port.name + "' of " + session.path() + " is missing");
    }
  }
  std::vector<const char*> input_names, output_names;
  std::vector<const OrtValue*> inputs;
  for (const Feed& feed : held) {
    input_names.push_back(feed.port->name.c_str());
    inputs.push_back(feed.value.get());
  }
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
  std::vector<Value> values;
  {
    nb::gil_scoped_release release;
    values = session.run(input_names, inputs, output_names);
  }
  nb::dict result;
  for (size_t i = 0; i < values.size(); ++i) result[output_names[i]] = to_numpy(std::move(values[i]));
  return result;
}

EarlyStopping early_stopping(const std::string& text) {
  if (text == "true") return EarlyStopping::kTrue;
  if (text == "false") return EarlyStopping::kFalse;
  if (text == "never") return EarlyStopping::kNever;
  throw std::runtime_error("early_stopping is '" + text + "', must be 'true', 'false' or 'never'");
}

template <class T>
T option(const std::string& name, nb::handle value, const char* what) {
  T result;
  if (!nb::try_cast(value, result)) throw std::runtime_error("option " + name + " must be " + what);
  return result;
}

SearchOptions search_options(const nb::dict& given) {
  SearchOptions options;
  for (auto [key, value] : given) {
    const auto name = nb::cast<std::string>(key);
    if (name == "num_beams") {
      options.num_beams = option<int>(name, value, "an integer");
    } else if (name == "num_return_sequences") {
      options.num_return_sequences = option<int>(name, value, "an integer");
    } else if (name == "max_new_tokens") {
      options.max_new_tokens = option<int>(name, value, "an integer");
    } else if (name == "min_new_tokens") {
      options.min_new_tokens = option<int>(name, value, "an integer");
    } else if (name == "length_penalty") {
      options.length_penalty = option<double>(name, value, "a number");
    } else if (name == "early_stopping") {
      options.early_stopping = early_stopping(option<std::string>(name, value, "a string"));
    } else if (name == "eos_token_ids") {
      options.eos_token_ids = option<std::vector<int64_t>>(name, value, "a list of integers");
    } else {
      throw std::runtime_error("unknown generation option '" + name + "'");
    }
  }
  return options;
}

// Lets Ctrl-C through while the GIL is released. Taking the GIL can wait for other Python threads, so
// not at every token.
class SignalCheck {
 public:
  void operator()() {
    const auto now = std::chrono::steady_clock::now();
    if (now - last_ < std::chrono::milliseconds(50)) return;
    nb::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    last_ = std::chrono::steady_clock::now();
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

using Sequences = std::vector<std::vector<std::pair<std::vector<int64_t>, float>>>;

Sequences generate(const Generator& generator, const nb::object& prefix_embeds,
                   const std::vector<std::vector<int64_t>>& prompts, const nb::dict& options) {
  nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu> prefix;
  const int width = generator.shape().hidden_size;
  if (!nb::try_cast(prefix_embeds, prefix, false) || prefix.shape(2) != static_cast<size_t>(width)) {
    throw std::runtime_error("prefix_embeds must be a C-contiguous float32 array (images, length, " +
                             std::to_string(width) + ")");
  }
  const SearchOptions search = search_options(options);
  const Prefix borrowed{prefix.data(), static_cast<int>(prefix.shape(0)), static_cast<int>(prefix.shape(1))};
  nb::gil_scoped_release release;
  Sequences sequences;
  for (auto& image : generator.generate(borrowed, prompts, search, SignalCheck())) {
    auto& best = sequences.emplace_back();
    for (Hypothesis& hypothesis : image) best.emplace_back(std::move(hypothesis.tokens), hypothesis.score);
  }
  return sequences;
}

using PortTuple = std::tuple<std::string, std::string, std::vector<int64_t>>;

std::vector<PortTuple> port_tuples(const std::vector<Port>& ports) {
  std::vector<PortTuple> tuples;
  for (const Port& port : ports) tuples.emplace_back(port.name, dtype_name(port.tensor.dtype), port.tensor.shape);
  return tuples;
}

// ONNX Runtime is loaded once a process (see load_onnxruntime); this object only says that it is.
struct Runtime {};

}  // namespace
}  // namespace blip2rt

NB_MODULE(_native, m) {
  using namespace blip2rt;
  m.doc() = "ONNX Runtime sessions and the generation loop";

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
          [](Session* self, const Runtime&, const std::string& graph_path, int intra_op_threads) {
            nb::gil_scoped_release release;
            new (self) Session(graph_path, intra_op_threads);
          },
          "runtime"_a, "graph_path"_a, "intra_op_threads"_a = 0)
      .def_prop_ro("inputs", [](const Session& self) { return port_tuples(self.inputs()); })
      .def_prop_ro("outputs", [](const Session& self) { return port_tuples(self.outputs()); })
      .def("run", &run, "feeds"_a, "outputs"_a = nb::none());

  nb::class_<Generator>(m, "Generator")
      .def(
          "__init__",
          [](Generator* self, const Session& embed, const Session& llm, int layers, int kv_heads, int head_dim,
             int hidden_size, int vocab_size) {
            new (self) Generator(embed, llm, {layers, kv_heads, head_dim, hidden_size, vocab_size});
          },
          "embed"_a, "llm"_a, "layers"_a, "kv_heads"_a, "head_dim"_a, "hidden_size"_a, "vocab_size"_a,
          nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>())
      .def("generate", &generate, "prefix_embeds"_a, "prompts"_a, "options"_a = nb::dict());
}
