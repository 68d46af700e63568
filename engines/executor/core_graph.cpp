#include "executor/core_graph.h"

#include <algorithm>
#include <utility>

#include "base/deadline.h"
#include "base/utf8.h"
#include "executor/graph.h"
#include "executor/thread_pool.h"
#include "kernels/dispatch.h"
#include "ort/active_call.h"

namespace blip2rt {
namespace {

size_t port_index(const std::vector<Port>& ports, const char* name) {
  for (size_t i = 0; i < ports.size(); ++i) {
    if (ports[i].name == name) return i;
  }
  throw std::runtime_error("the graph has no tensor " + quoted(name));
}

// Throws if a tensor is not what the graph declares.
void check_tensor(const Port& port, const TensorView& tensor) {
  bool fits = tensor.dtype == port.tensor.dtype && tensor.rank == port.tensor.shape.size();
  for (size_t i = 0; fits && i < tensor.rank; ++i) {
    fits = tensor.axes[i] >= 0 && (port.tensor.shape[i] < 0 || port.tensor.shape[i] == tensor.axes[i]);
  }
  if (!fits) throw std::runtime_error(quoted(port.name) + " has another type or shape than the graph declares");
}

void require_all(const std::vector<Port>& ports, const std::vector<TensorView>& tensors) {
  for (size_t i = 0; i < ports.size(); ++i) {
    if (!tensors[i]) throw std::runtime_error("the input " + quoted(ports[i].name) + " is missing");
  }
}

class CoreBinding final : public Binding {
 public:
  explicit CoreBinding(const PlannedGraph& graph)
      : graph_(graph), fed_(graph.inputs.size()), bound_(graph.outputs.size()), wanted_(graph.outputs.size()) {}

  void input(const char* name, const TensorView& tensor) override { set(graph_.inputs, fed_, name, tensor); }
  void output(const char* name, const TensorView& tensor) override { set(graph_.outputs, bound_, name, tensor); }

 private:
  static void set(const std::vector<Port>& ports, std::vector<TensorView>& to, const char* name,
                  const TensorView& tensor) {
    const size_t port = port_index(ports, name);
    check_tensor(ports[port], tensor);
    to[port] = tensor;
  }

  void execute() override {
    require_all(graph_.inputs, fed_);
    run_graph(graph_, fed_, bound_, wanted_);
  }

  const PlannedGraph& graph_;
  std::vector<TensorView> fed_, bound_;
  std::vector<bool> wanted_;  // nothing: bound memory receives all that is read
};

class CoreGraph final : public RuntimeGraph {
 public:
  explicit CoreGraph(PlannedGraph graph) : graph_(std::move(graph)) {
    inputs = graph_.inputs;
    outputs = graph_.outputs;
  }

  std::vector<OwnedTensor> run(const NamedTensors& feeds, const std::vector<const char*>& names) const override {
    std::vector<TensorView> fed(inputs.size());
    std::vector<bool> wanted(outputs.size());
    for (const auto& [name, tensor] : feeds) {
      const size_t port = port_index(inputs, name);
      check_tensor(inputs[port], tensor);
      fed[port] = tensor;
    }
    require_all(inputs, fed);
    for (const char* name : names) wanted[port_index(outputs, name)] = true;
    std::vector<OwnedTensor> made = run_graph(graph_, fed, {}, wanted), ordered;
    for (const char* name : names) {
      const auto place =
          std::count(wanted.begin(), wanted.begin() + static_cast<ptrdiff_t>(port_index(outputs, name)), true);
      ordered.push_back(made[static_cast<size_t>(place)]);
    }
    return ordered;
  }

  std::unique_ptr<Binding> bind() const override { return std::make_unique<CoreBinding>(graph_); }

 private:
  PlannedGraph graph_;
};

}  // namespace

std::unique_ptr<RuntimeGraph> open_with_executor(GraphSource source) {
  start_counting_calls();
  try {
    return std::make_unique<CoreGraph>(plan_graph(source));
  } catch (const RunTimeout&) {
    throw;
  } catch (const std::runtime_error& error) {
    throw GraphError(source.path, error.what(), "run it with ONNX Runtime");
  }
}

bool prefers_executor(const std::vector<std::string>& precisions) {
#if defined(__x86_64__)
  const bool int4 = std::all_of(precisions.begin(), precisions.end(), [](const auto& each) { return each == "int4"; });
  return int4 && may_use(Level::kAvx2);
#else
  static_cast<void>(precisions);  // not measured
  return false;
#endif
}

}  // namespace blip2rt
