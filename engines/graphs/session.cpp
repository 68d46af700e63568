// Reads and rewrites graphs for a runtime.
#include "graphs/session.h"

#include <algorithm>
#include <thread>

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

}  // namespace

void check_process(int process) {
  if (process_id() == process) return;
  throw std::runtime_error(
      "this process was forked after the model was loaded: load it in the child, or start processes by spawn");
}

Session::Session(const std::string& graph_path, int threads, CustomOps ops, const AllowedFiles& files, bool trusted,
                 OpenGraph open)
    : path_(graph_path), process_(process_id()), weights_(folder_of(graph_path)) {
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
  const bool is_rewritten = !source.rewritten.bytes.empty();
  if (is_rewritten) custom_kernels_ = source.rewritten.kernels;
  graph_ = open(std::move(source));
  if (!is_rewritten && is_loop_only()) {
    throw GraphError(path_, "it has an input that is reserved for the loop");
  }
}

Session::~Session() {
  if (process_id() != process_) (void)graph_.release();  // in a fork it would wait for threads that do not exist
}

bool Session::is_loop_only() const { return find_input(kCacheRows) != nullptr || find_input(kEncoderRows) != nullptr; }

const Port* Session::find_input(const std::string& name) const { return find(inputs(), name); }

const Port* Session::find_output(const std::string& name) const { return find(outputs(), name); }

std::vector<OwnedTensor> Session::run(const NamedTensors& inputs, const std::vector<const char*>& outputs) const {
  check_process();
  const ActiveCall call;
  return graph_->run(inputs, outputs);
}

std::unique_ptr<Binding> Session::bind() const {
  check_process();
  return graph_->bind();
}

}  // namespace blip2rt
