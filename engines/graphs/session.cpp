// Creates ONNX Runtime sessions with options for small machines, and runs them.
#include "graphs/session.h"

#include <algorithm>
#include <thread>

#include "base/system.h"
#include "ops/attention_op.h"
#include "ops/domain.h"
#include "ort/active_call.h"

namespace blip2rt {
namespace {

// Returns the rewritten graph; without bytes if the file is to be loaded unchanged.
RewrittenGraph rewritten_graph(const std::string& bytes, int intra_op_threads, CustomOps ops, Weights& weights) {
  const size_t asked = static_cast<size_t>(std::max(0, intra_op_threads));
  ops.threads = asked > 0 ? asked : std::max<size_t>(1, std::thread::hardware_concurrency());
  return rewrite_model(bytes, ops, weights);
}

SessionOptions session_options(const std::string& bytes, int intra_op_threads) {
  OrtSessionOptions* raw = nullptr;
  check(ort().CreateSessionOptions(&raw));
  SessionOptions options(raw);
  // Products between QuantizeLinear and DequantizeLinear are slow unless they are fused. Other fusions and layouts make
  // opening slower, and runs no faster.
  constexpr int kBasicOptimizations = 1, kExtendedOptimizations = 2;
  const bool fuses = bytes.find("QuantizeLinear") != std::string::npos;
  check(ort().SetSessionGraphOptimizationLevel(raw, fuses ? kExtendedOptimizations : kBasicOptimizations));
  if (intra_op_threads > 0) check(ort().SetIntraOpNumThreads(raw, intra_op_threads));
  // The cache's capacity differs between calls; memory patterns, one per shape, would accumulate.
  check(ort().DisableMemPattern(raw));
  // Keeps weights out of the arena, which grows by powers of two and would keep the slack.
  check(ort().AddSessionConfigEntry(raw, "session.use_device_allocator_for_initializers", "1"));
  // Threads may spin within a run but not after it: an idle encoder would occupy the decoder's cores.
  check(ort().AddSessionConfigEntry(raw, "session.force_spinning_stop", "1"));
  // Within a run a thread that waits spins briefly, until the next operator, and then sleeps. Older releases ignore
  // this.
  check(ort().AddSessionConfigEntry(raw, "session.intra_op.spin_duration_us", "50"));
  return options;
}

// Opens the graph in `bytes`, or the file if they are empty. Without VNNI, ONNX Runtime sums two 8-bit products in 16
// bits, which overflows, unless "x64quantprecision" makes it use unsigned weights. Before 1.30 that option aborted for
// products without zero points. As of 1.32 it is an error if two products share weights; such a graph is opened without
// it.
OrtSession* create_session(const std::string& path, const std::string& bytes, OrtSessionOptions* options) {
  const auto create = [&](const char* exact) {
    check(ort().AddSessionConfigEntry(options, "session.x64quantprecision", exact));
    OrtSession* session = nullptr;
    check(bytes.empty()
              ? ort().CreateSession(ort_environment(), native_path(path).c_str(), options, &session)
              : ort().CreateSessionFromArray(ort_environment(), bytes.data(), bytes.size(), options, &session));
    return session;
  };
  if (ort_older_than(30)) return create("0");
  try {
    return create("1");
  } catch (const std::runtime_error&) {
    return create("0");
  }
}

// Frees the arena's unused memory after a run: each graph has an arena of its own, as large as its largest run.
const OrtRunOptions* frugal() {
  static const OrtRunOptions* const options = [] {
    OrtRunOptions* made = nullptr;
    check(ort().CreateRunOptions(&made));
    check(ort().AddRunConfigEntry(made, "memory.enable_memory_arena_shrinkage", "cpu:0"));
    return made;
  }();
  return options;
}

using CountPorts = OrtStatus* (*)(const OrtSession*, size_t*) noexcept;
using PortType = OrtStatus* (*)(const OrtSession*, size_t, OrtTypeInfo**) noexcept;
using PortName = OrtStatus* (*)(const OrtSession*, size_t, OrtAllocator*, char**) noexcept;

std::vector<Port> ports(const OrtSession* session, CountPorts count_of, PortType type_of, PortName name_of) {
  OrtAllocator* allocator = nullptr;
  check(ort().GetAllocatorWithDefaultOptions(&allocator));
  size_t count = 0;
  check(count_of(session, &count));
  std::vector<Port> result(count);
  for (size_t i = 0; i < count; ++i) {
    char* name = nullptr;
    check(name_of(session, i, allocator, &name));
    result[i].name = name;
    check(ort().AllocatorFree(allocator, name));
    OrtTypeInfo* raw = nullptr;
    check(type_of(session, i, &raw));
    TypeInfo type(raw);
    const OrtTensorTypeAndShapeInfo* info = nullptr;
    check(ort().CastTypeInfoToTensorInfo(raw, &info));
    if (info != nullptr) result[i].tensor = tensor_info(info);
  }
  return result;
}

const Port* find(const std::vector<Port>& ports, const std::string& name) {
  for (const Port& port : ports) {
    if (port.name == name) return &port;
  }
  return nullptr;
}

}  // namespace

Session::Session(const std::string& graph_path, int intra_op_threads, CustomOps ops, const AllowedFiles& files,
                 bool trusted)
    : path_(graph_path), process_(process_id()), weights_(folder_of(graph_path)) {
  const ActiveCall call;
  SessionOptions options;
  RewrittenGraph graph;
  {
    const std::string bytes =
        read_graph(graph_path, files, trusted ? OperatorRules::kTrusted : OperatorRules::kOnnxRuntime);
    options = session_options(bytes, intra_op_threads);
    try {
      graph = rewritten_graph(bytes, intra_op_threads, ops, weights_);
    } catch (const std::runtime_error& error) {
      throw GraphError(graph_path, error.what());
    }
  }
  if (!graph.bytes.empty()) {
    const std::string folder = folder_of(graph_path);
    check(ort().AddSessionConfigEntry(options.get(), "session.model_external_initializers_file_folder_path",
                                      folder.empty() ? "." : folder.c_str()));
    add_domain(options.get());
    custom_kernels_ = graph.kernels;
  }
  session_ = create_session(graph_path, graph.bytes, options.get());
  try {
    inputs_ = ports(session_, ort().SessionGetInputCount, ort().SessionGetInputTypeInfo, ort().SessionGetInputName);
    outputs_ = ports(session_, ort().SessionGetOutputCount, ort().SessionGetOutputTypeInfo, ort().SessionGetOutputName);
    if (graph.bytes.empty() && is_loop_only()) {
      throw GraphError(graph_path, "it has an input that is reserved for the loop");
    }
  } catch (...) {
    ort().ReleaseSession(session_);
    throw;
  }
}

Session::~Session() {
  if (process_id() == process_)
    ort().ReleaseSession(session_);  // in a fork it would wait for threads that do not exist
}

void Session::check_process() const {
  if (process_id() == process_) return;
  throw std::runtime_error(
      "this process was forked after the model was loaded: load it in the child, or start processes by spawn");
}

bool Session::is_loop_only() const { return find_input(kCacheRows) != nullptr || find_input(kEncoderRows) != nullptr; }

const Port* Session::find_input(const std::string& name) const { return find(inputs_, name); }

const Port* Session::find_output(const std::string& name) const { return find(outputs_, name); }

std::vector<Value> Session::run(const std::vector<const char*>& input_names, const std::vector<const OrtValue*>& inputs,
                                const std::vector<const char*>& output_names) const {
  check_process();
  const ActiveCall call;
  std::vector<OrtValue*> raw(output_names.size(), nullptr);
  OrtStatus* status = ort().Run(session_, frugal(), input_names.data(), inputs.data(), inputs.size(),
                                output_names.data(), raw.size(), raw.data());
  std::vector<Value> outputs(raw.begin(), raw.end());  // owns the outputs even if the run failed
  check(status);
  return outputs;
}

Binding::Binding(const Session& session) : owner_(session), session_(session.session_) {
  session.check_process();
  OrtIoBinding* raw = nullptr;
  check(ort().CreateIoBinding(session_, &raw));
  binding_.reset(raw);
}

void Binding::input(const char* name, const Value& value) { check(ort().BindInput(binding_.get(), name, value.get())); }

void Binding::output(const char* name, const Value& value) {
  check(ort().BindOutput(binding_.get(), name, value.get()));
}

void Binding::run() {
  owner_.check_process();
  check(ort().RunWithBinding(session_, nullptr, binding_.get()));
}

}  // namespace blip2rt
