// Calls an engine in Python from the core's threads, which do not hold the GIL.
#include "python/python_graph.h"

#include <nanobind/ndarray.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "python/casters.h"
#include "python/gil.h"

namespace nb = nanobind;

namespace blip2rt {
namespace {

std::atomic<bool> python_ends{false};
std::atomic<int> calls{0};  // threads in with_python

// Lets no thread call an engine any more, and waits for those that do: Python ends a thread that comes back to it
// later, and TensorRT's module would abort. Runs when the interpreter begins to end.
void end_calls() {
  constexpr std::chrono::seconds kLongest(60);
  python_ends = true;
  const ReleasedGil released;
  const auto end = std::chrono::steady_clock::now() + kLongest;
  while (calls > 0 && std::chrono::steady_clock::now() < end) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

struct Call {
  Call() { ++calls; }
  ~Call() { --calls; }
};

// Calls work() with the GIL. Its exceptions lose their Python types, which other threads could not destroy.
template <class Work>
auto with_python(const Work& work) {
  const Call counted;
  if (python_ends) throw std::runtime_error("the process is ending");
  const HeldGil held;
  try {
    return work();
  } catch (nb::python_error& error) {
    if (!error.matches(PyExc_Exception)) throw;
    throw std::runtime_error(nb::cast<std::string>(nb::str(error.value())));
  }
}

uintptr_t address_of(const void* data) { return reinterpret_cast<uintptr_t>(data); }

nb::tuple tensor_of(const std::string& name, const TensorView& view) {
  nb::list shape;
  for (size_t i = 0; i < view.rank; ++i) shape.append(view.axes[i]);
  return nb::make_tuple(name, address_of(view.data), nb::tuple(shape));
}

DType dtype_named(const std::string& name) {
  for (const DType dtype :
       {DType::kFloat32, DType::kFloat16, DType::kInt64, DType::kInt32, DType::kInt8, DType::kBool}) {
    if (name == dtype_name(dtype)) return dtype;
  }
  return DType::kUndefined;
}

std::vector<Port> ports_of(nb::handle listed) {
  std::vector<Port> ports;
  for (nb::handle port : listed) {
    ports.push_back({nb::cast<std::string>(port[0]),
                     {dtype_named(nb::cast<std::string>(port[1])), nb::cast<std::vector<int64_t>>(port[2])}});
  }
  return ports;
}

class PythonMemory final : public Memory {
 public:
  explicit PythonMemory(nb::handle engine) : engine_(engine) {}

  void* allocate(size_t bytes) override {
    return with_python([&] {
      const nb::object address = call_python(engine_.attr("allocate"), nb::make_tuple(bytes));
      return reinterpret_cast<void*>(nb::cast<uintptr_t>(address));
    });
  }

  void release(void* address) noexcept override {
    try {
      with_python([&] { call_python(engine_.attr("release"), nb::make_tuple(address_of(address))); });
    } catch (...) {  // a failed device may reject every call
    }
  }

  void copy(const BlockCopy& copy) override {
    const auto end = [](const BlockCopy::End& one) {
      return nb::make_tuple(address_of(one.start), one.head, one.tensor, one.on_host);
    };
    with_python([&] {
      call_python(engine_.attr("copy"),
                  nb::make_tuple(nb::make_tuple(end(copy.from), end(copy.to), copy.bytes, copy.heads, copy.tensors)));
    });
  }

 private:
  nb::handle engine_;  // which outlives this
};

class PythonBinding final : public Binding {
 public:
  explicit PythonBinding(std::shared_ptr<nb::object> engine) : engine_(std::move(engine)) {}

  void input(const char* name, const TensorView& tensor) override { inputs_.emplace_back(name, tensor); }
  void output(const char* name, const TensorView& tensor) override { outputs_.emplace_back(name, tensor); }

 private:
  using Tensors = std::vector<std::pair<std::string, TensorView>>;

  static nb::list listed(const Tensors& tensors) {
    nb::list list;
    for (const auto& [name, view] : tensors) list.append(tensor_of(name, view));
    return list;
  }

  void execute() override {
    with_python([this] {
      if (bound_ == nullptr) {
        bound_ = shared_object(call_python(engine_->attr("bind"), nb::make_tuple(listed(inputs_), listed(outputs_))));
      }
      call_python(*bound_, nb::make_tuple());
    });
  }

  std::shared_ptr<nb::object> engine_, bound_;
  Tensors inputs_, outputs_;
};

class PythonGraph final : public RuntimeGraph {
 public:
  explicit PythonGraph(nb::object engine) : engine_(shared_object(std::move(engine))), memory_(*engine_) {
    inputs = ports_of(engine_->attr("inputs"));
    outputs = ports_of(engine_->attr("outputs"));
    max_rows = nb::cast<int>(engine_->attr("max_rows"));
  }

  std::vector<OwnedTensor> run(const NamedTensors& feeds, const std::vector<const char*>& names) const override {
    return with_python([&] {
      nb::list given, wanted;
      for (const auto& [name, view] : feeds) given.append(tensor_of(name, view));
      for (const char* name : names) wanted.append(nb::str(name));
      std::vector<OwnedTensor> results;
      const nb::object arrays = call_python(engine_->attr("run"), nb::make_tuple(given, wanted));
      for (nb::handle array : arrays) {
        nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu> values;
        if (!nb::try_cast(array, values)) throw std::runtime_error("the engine returned no contiguous array");
        std::vector<int64_t> shape;
        for (size_t i = 0; i < values.ndim(); ++i) shape.push_back(static_cast<int64_t>(values.shape(i)));
        std::string dtype;
        (void)nb::detail::read_text(nb::object(array.attr("dtype").attr("name")), dtype);
        results.push_back(
            {{const_cast<void*>(values.data()), shape, dtype_named(dtype)}, shared_object(nb::borrow(array))});
      }
      return results;
    });
  }

  std::unique_ptr<Binding> bind() const override { return std::make_unique<PythonBinding>(engine_); }
  Memory& memory() const override { return memory_; }

 private:
  std::shared_ptr<nb::object> engine_;
  mutable PythonMemory memory_;
};

}  // namespace

nb::object call_python(nb::handle function, const nb::tuple& arguments) {
  PyObject* result = nullptr;
  while_python_lives([&] { result = PyObject_CallObject(function.ptr(), arguments.ptr()); });
  if (result == nullptr) throw nb::python_error();
  return nb::steal(result);
}

std::shared_ptr<nb::object> shared_object(nb::object object) {
  return {new nb::object(std::move(object)), [](nb::object* kept) {
            if (python_ends) return;  // the process is ending
            const HeldGil held;
            delete kept;
          }};
}

std::unique_ptr<RuntimeGraph> make_python_graph(nb::object engine) {
  static const bool registered = [] {
    nb::module_::import_("atexit").attr("register")(nb::cpp_function(&end_calls));
    return true;
  }();
  static_cast<void>(registered);
  return std::make_unique<PythonGraph>(std::move(engine));
}

}  // namespace blip2rt
