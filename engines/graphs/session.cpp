// Reads and rewrites graphs for a runtime.
#include "graphs/session.h"

#include <algorithm>
#include <string_view>
#include <thread>
#include <utility>

#include "base/deadline.h"
#include "base/error.h"
#include "base/system.h"
#include "ops/attention_op.h"
#include "ort/active_call.h"

namespace blip2rt {
namespace {

const Port* find(const std::vector<Port>& ports, const std::string& name) {
  for (const Port& port : ports) {
    if (port.name == name) return &port;
  }
  return nullptr;
}

// Bounds what a stranger's graph may cost by the bytes of its files. Exports stay far below: they fold only scales, and
// a run takes milliseconds for each MB.
void set_limits(GraphSource& source, const AllowedFiles& files, double run_timeout, bool trusted) {
  source.run_timeout = run_timeout;
  if (trusted || !files) return;
  constexpr double kMinSeconds = 60, kBytesPerSecond = 1e6;
  constexpr uint64_t kMinFolding = 64 << 20, kFoldingPerByte = 16;
  uint64_t bytes = source.bytes.size();
  for (const auto& [name, size] : *files) bytes += std::min<uint64_t>(size, uint64_t{1} << 50);
  if (run_timeout == 0) source.run_timeout = kMinSeconds + static_cast<double>(bytes) / kBytesPerSecond;
  source.folding_budget = kMinFolding + kFoldingPerByte * bytes;
}

template <class Work>
auto within_time(const std::string& path, Work work) {
  try {
    return work();
  } catch (const RunTimeout&) {
    throw Error(ErrorKind::kBackend, path +
                                         " ran longer than run_timeout allows: raise it on a slow machine, or get "
                                         "the bundle from a source you trust");
  }
}

}  // namespace

void check_process(int process) {
  if (process_id() == process) return;
  throw std::runtime_error(
      "this process was forked after the model was loaded: load it in the child, or start processes by spawn");
}

Session::Session(const std::string& graph_path, int threads, CustomOps ops, const AllowedFiles& files, bool trusted,
                 OpenGraph open, OutputShapes shapes, double run_timeout)
    : path_(graph_path), process_(process_id()), shapes_(std::move(shapes)), weights_(folder_of(graph_path)) {
  const ActiveCall call;
  GraphSource source{path_,
                     read_graph(path_, files, trusted ? OperatorRules::kTrusted : OperatorRules::kOnnxRuntime),
                     {},
                     weights_,
                     threads};
  const auto asked = static_cast<size_t>(std::max(0, threads));
  ops.threads = asked > 0 ? asked : std::max<size_t>(1, std::thread::hardware_concurrency());
  try {
    source.rewritten = rewrite_model(source.bytes, ops, weights_);
  } catch (const std::runtime_error& error) {
    throw GraphError(path_, error.what());
  }
  set_limits(source, files, run_timeout, trusted);
  const bool is_rewritten = !source.rewritten.bytes.empty();
  if (is_rewritten) custom_kernels_ = source.rewritten.kernels;
  graph_ = within_time(path_, [&] { return open(std::move(source)); });
  if (!is_rewritten && is_loop_only()) {
    throw GraphError(path_, "it has an input that is reserved for the loop");
  }
}

Session::Session(std::string name, std::unique_ptr<RuntimeGraph> graph, OutputShapes shapes)
    : path_(std::move(name)),
      process_(process_id()),
      shapes_(std::move(shapes)),
      weights_(folder_of(path_)),
      graph_(std::move(graph)) {}

Session::~Session() {
  if (process_id() != process_) (void)graph_.release();  // in a fork it would wait for threads that do not exist
}

bool Session::is_loop_only() const { return find_input(kCacheRows) != nullptr || find_input(kEncoderRows) != nullptr; }

const Port* Session::find_input(const std::string& name) const { return find(inputs(), name); }

const Port* Session::find_output(const std::string& name) const { return find(outputs(), name); }

std::vector<OwnedTensor> Session::run(const NamedTensors& inputs, const std::vector<const char*>& outputs) const {
  check_process();
  const ActiveCall call;
  std::vector<OwnedTensor> made = within_time(path_, [&] { return graph_->run(inputs, outputs); });
  const int64_t batch = inputs.empty() || inputs[0].second.rank == 0 ? -1 : inputs[0].second.axes[0];
  for (size_t i = 0; i < made.size(); ++i) check_output(outputs[i], made[i].view, batch);
  return made;
}

// Declared shapes prove nothing: a graph may slice, reduce or empty what it declares with a free axis.
void Session::check_output(const char* name, const TensorView& tensor, int64_t batch) const {
  const auto promised = shapes_.find(name);
  if (promised == shapes_.end()) return;
  std::vector<int64_t> shape = promised->second;
  if (!shape.empty() && shape[0] < 0) shape[0] = batch;
  bool fits = tensor.dtype == DType::kFloat32 && tensor.rank == shape.size();
  for (size_t i = 0; fits && i < shape.size(); ++i) {
    fits = shape[i] < 0 ? tensor.axes[i] > 0 : tensor.axes[i] == shape[i];
  }
  if (fits) return;
  throw Error(ErrorKind::kModel, path_ + " returned " + name + " of " + dtype_name(tensor.dtype) + " " +
                                     shape_text({tensor.axes, tensor.axes + tensor.rank}) + ", not float32 " +
                                     shape_text(shape) + ": download or export the bundle again");
}

std::unique_ptr<Binding> Session::bind() const {
  check_process();
  std::unique_ptr<Binding> binding = graph_->bind();
  binding->path_ = &path_;
  return binding;
}

void Binding::run() {
  blip2rt::check_process(process_);
  try {
    within_time(*path_, [this] { execute(); });
  } catch (const Error&) {
    throw;
  } catch (const std::runtime_error& error) {
    const std::string_view reason = error.what();  // the executor's, ONNX Runtime's to 1.31, and since 1.32
    const auto says = [reason](std::string_view part) { return reason.find(part) != reason.npos; };
    if (!says(kWrongOutput) && !says("to re-use buffer") && !says("pre-allocated")) throw;
    throw Error(ErrorKind::kModel,
                *path_ + " returned an output of another shape than it promises: download or export the bundle again");
  }
}

}  // namespace blip2rt
