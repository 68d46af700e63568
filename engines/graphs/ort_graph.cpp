// Creates ONNX Runtime sessions with options for small machines, and runs them.
#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string_view>

#include "base/system.h"
#include "base/utf8.h"
#include "graphs/onnx_graph.h"
#include "graphs/session.h"
#include "ops/domain.h"
#include "ort/ort_api.h"
#include "ort/timed_run.h"

namespace blip2rt {
namespace {

SessionOptions session_options(const std::string& bytes, int threads) {
  OrtSessionOptions* raw = nullptr;
  check(ort().CreateSessionOptions(&raw));
  SessionOptions options(raw);
  // Products between QuantizeLinear and DequantizeLinear are slow unless they are fused. Other fusions and layouts make
  // opening slower, and runs no faster.
  constexpr int kBasicOptimizations = 1, kExtendedOptimizations = 2;
  const bool fuses = bytes.find("QuantizeLinear") != std::string::npos;
  check(ort().SetSessionGraphOptimizationLevel(raw, fuses ? kExtendedOptimizations : kBasicOptimizations));
  if (threads > 0) check(ort().SetIntraOpNumThreads(raw, threads));
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

// Returns whether folding the graph's constants costs little: it casts scales and normalizes queries, as exports do.
bool folds_little(const OnnxModel& model, const Graph& graph, uint64_t budget) {
  static const std::set<std::string_view> no_larger = {"Cast",      "Identity", "LayerNormalization",
                                                       "Reshape",   "Squeeze",  "SimplifiedLayerNormalization",
                                                       "Transpose", "Unsqueeze"};
  constexpr size_t kMostSteps = 8;  // one behind the other: ONNX Runtime folds a chain in quadratic time
  struct Folded {
    uint64_t bytes;
    size_t steps;
  };
  if (model.has_functions || graph.has_graph) return false;
  std::map<std::string_view, Folded> folded;
  const auto value_of = [&](std::string_view name) -> std::optional<Folded> {
    if (const auto found = folded.find(name); found != folded.end()) return found->second;
    const auto constant = graph.constants.find(name);
    if (constant == graph.constants.end()) return name.empty() ? std::optional(Folded{0, 0}) : std::nullopt;
    uint64_t bytes = 8;  // of an element, at most
    for (const uint64_t axis : constant->second.shape) {
      if (__builtin_mul_overflow(bytes, axis, &bytes)) bytes = UINT64_MAX;
    }
    return Folded{bytes, 0};
  };
  uint64_t bytes = 0;
  for (const Node& node : graph.nodes) {
    Folded made = {0, 0};
    const bool is_constant = std::all_of(node.inputs.begin(), node.inputs.end(), [&](std::string_view name) {
      const std::optional<Folded> input = value_of(name);
      if (input) made = {std::max(made.bytes, input->bytes), std::max(made.steps, input->steps + 1)};
      return input.has_value();
    });
    if (!is_constant) continue;
    if (no_larger.count(node.op_type) == 0 || made.steps > kMostSteps) return false;
    for (const std::string_view output : node.outputs) {
      if (__builtin_add_overflow(bytes, made.bytes, &bytes) || bytes > budget) return false;
      folded.emplace(output, made);
    }
  }
  return true;
}

// ONNX Runtime has no limit for the constants that it computes at load, so it computes none unless they cost little.
void limit_folding(OrtSessionOptions* options, const GraphSource& source) {
  const OnnxModel model(source.model());
  const Graph graph(model.graph);
  if (folds_little(model, graph, source.folding_budget)) return;
  for (const Node& node : graph.nodes) {  // whose products are wrong if the scales are not constant (1.32)
    if (node.op_type == "MatMulNBits" && node.number("bits", 0) == 8 && graph.constants.count(node.input(2)) == 0) {
      throw GraphError(source.path,
                       "node " + quoted(node.name) + " has 8-bit weights beside constants that cost much to compute");
    }
  }
  check(ort().AddSessionConfigEntry(options, "optimization.disable_specified_optimizers", "ConstantFolding"));
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

class OrtBinding final : public Binding {
 public:
  OrtBinding(OrtSession* session, double run_timeout) : session_(session), run_timeout_(run_timeout) {
    OrtIoBinding* raw = nullptr;
    check(ort().CreateIoBinding(session_, &raw));
    binding_.reset(raw);
  }

  void input(const char* name, const TensorView& tensor) override {
    check(ort().BindInput(binding_.get(), name, value_of(tensor).get()));
  }

  void output(const char* name, const TensorView& tensor) override {
    check(ort().BindOutput(binding_.get(), name, value_of(tensor).get()));
  }

 private:
  void execute() override {
    const TimedRun run(run_timeout_);
    run.check(ort().RunWithBinding(session_, run.options(), binding_.get()));
  }

  OrtSession* session_;
  const double run_timeout_;
  IoBinding binding_;
};

class OrtGraph final : public RuntimeGraph {
 public:
  OrtGraph(OrtSession* session, double run_timeout) : run_timeout_(run_timeout), session_(session) {
    inputs = ports(session, ort().SessionGetInputCount, ort().SessionGetInputTypeInfo, ort().SessionGetInputName);
    outputs = ports(session, ort().SessionGetOutputCount, ort().SessionGetOutputTypeInfo, ort().SessionGetOutputName);
  }

  std::vector<OwnedTensor> run(const NamedTensors& feeds, const std::vector<const char*>& names) const override {
    std::vector<const char*> fed_names;
    std::vector<Value> owned;
    std::vector<const OrtValue*> fed;
    for (const auto& [name, tensor] : feeds) {
      fed_names.push_back(name);
      fed.push_back(owned.emplace_back(value_of(tensor)).get());
    }
    std::vector<OrtValue*> raw(names.size(), nullptr);
    const TimedRun run(run_timeout_);
    // Frees the arena's unused memory: each graph has an arena of its own, as large as its largest run.
    check(ort().AddRunConfigEntry(run.options(), "memory.enable_memory_arena_shrinkage", "cpu:0"));
    OrtStatus* status = ort().Run(session_.get(), run.options(), fed_names.data(), fed.data(), fed.size(), names.data(),
                                  raw.size(), raw.data());
    const std::vector<std::shared_ptr<OrtValue>> values = owned_values(raw);  // even if the run failed
    run.check(status);
    std::vector<OwnedTensor> result;
    for (const auto& value : values) result.push_back({view_of(value.get()), value});
    return result;
  }

  std::unique_ptr<Binding> bind() const override { return std::make_unique<OrtBinding>(session_.get(), run_timeout_); }

 private:
  static std::vector<std::shared_ptr<OrtValue>> owned_values(const std::vector<OrtValue*>& raw) {
    std::vector<std::shared_ptr<OrtValue>> values;
    for (OrtValue* value : raw) values.emplace_back(Value(value));
    return values;
  }

  const double run_timeout_;
  OwnedSession session_;
};

}  // namespace

std::unique_ptr<RuntimeGraph> open_with_onnxruntime(GraphSource source) {
  SessionOptions options = session_options(source.bytes, source.threads);
  if (!source.rewritten.bytes.empty()) {
    const std::string folder = folder_of(source.path);
    check(ort().AddSessionConfigEntry(options.get(), "session.model_external_initializers_file_folder_path",
                                      folder.empty() ? "." : folder.c_str()));
    add_domain(options.get());
  }
  if (source.folding_budget != UINT64_MAX) limit_folding(options.get(), source);
  source.bytes.clear();
  source.bytes.shrink_to_fit();
  return std::make_unique<OrtGraph>(create_session(source.path, source.rewritten.bytes, options.get()),
                                    source.run_timeout);
}

}  // namespace blip2rt
