// Checks every node against the table of allowed operators, and the operands that ONNX Runtime does not check itself.
#include "graphs/operator_checks.h"

#include <algorithm>
#include <iterator>
#include <set>
#include <stdexcept>
#include <string>

#include "base/utf8.h"
#include "graphs/allowed_operators.h"
#include "graphs/onnx_graph.h"
#include "graphs/rewrite_attention.h"

namespace blip2rt {
namespace {

constexpr uint64_t kMaxSize = uint64_t{1} << 31;
constexpr auto kUInt4 = static_cast<DType>(21);  // which no input or output has

// Returns nullptr if `name` is not a constant.
const Constant* constant(const Graph& graph, std::string_view name) {
  const auto found = graph.constants.find(name);
  return found == graph.constants.end() ? nullptr : &found->second;
}

// Returns a constant, possibly behind a Cast, as scales are.
const Constant* constant_behind_cast(const Graph& graph, std::string_view name) {
  const auto maker = graph.producers.find(name);
  if (maker == graph.producers.end()) return constant(graph, name);
  const Node& node = graph.nodes[maker->second];
  return node.is("Cast") && node.inputs.size() == 1 ? constant(graph, node.inputs[0]) : nullptr;
}

bool has_count(const Constant* constant, uint64_t rows, uint64_t columns) {
  uint64_t count = 1, wanted = 0;
  if (constant == nullptr || __builtin_mul_overflow(rows, columns, &wanted)) return false;
  for (uint64_t axis : constant->shape) {
    if (__builtin_mul_overflow(count, axis, &count)) return false;
  }
  return count == wanted;
}

bool is_block_size(int64_t block) { return block >= 16 && block <= 1 << 16 && (block & (block - 1)) == 0; }

bool matmul_nbits_fits(const Graph& graph, const Node& node) {
  enum Input : size_t { kX, kCodes, kScales, kZeroPoints };
  const auto size = [&](const char* name) { return static_cast<uint64_t>(node.number(name, 0)); };
  const uint64_t n = size("N"), k = size("K"), block = size("block_size"), bits = size("bits");
  if (!is_block_size(node.number("block_size", 0))) return false;
  const uint64_t blocks = (k + block - 1) / block;
  const Constant* codes = graph.constant(node.inputs[kCodes], DType::kUInt8);
  return has_count(codes, n, blocks * (block * bits / 8)) &&
         has_count(constant_behind_cast(graph, node.inputs[kScales]), n, blocks) &&
         has_count(graph.constant(node.inputs[kZeroPoints], DType::kUInt8), n, (blocks * bits + 7) / 8);
}

// GatherBlockQuantized: a table (V, K) with scales and zero points (V, blocks).
bool block_table_fits(const Graph& graph, const Node& node) {
  enum Input : size_t { kCodes, kIndices, kScales, kZeroPoints };
  constexpr int64_t kNibbles = 4;
  const DType dtype = node.number("bits", kNibbles) == kNibbles ? kUInt4 : DType::kUInt8;
  const int64_t block = node.number("block_size", 0);
  const Constant* codes = graph.constant(node.inputs[kCodes], dtype);
  if (codes == nullptr || codes->shape.size() != 2 || codes->shape[1] >= kMaxSize || !is_block_size(block))
    return false;
  const uint64_t rows = codes->shape[0], size = static_cast<uint64_t>(block);
  const uint64_t blocks = (codes->shape[1] + size - 1) / size;
  const auto fits = [&](const Constant* each) { return each != nullptr && each->has_shape({rows, blocks}); };
  return fits(constant_behind_cast(graph, node.inputs[kScales])) &&
         fits(graph.constant(node.inputs[kZeroPoints], dtype));
}

// Returns the columns of a constant matrix, possibly behind a Transpose, or 0.
uint64_t matrix_columns(const Graph& graph, std::string_view name) {
  const auto maker = graph.producers.find(name);
  const Node* turn = maker == graph.producers.end() ? nullptr : &graph.nodes[maker->second];
  if (turn != nullptr && (!turn->is("Transpose") || turn->inputs.size() != 1)) return 0;
  const Constant* matrix = constant(graph, turn == nullptr ? name : turn->inputs[0]);
  if (matrix == nullptr || matrix->shape.size() != 2) return 0;
  return matrix->shape[turn == nullptr || turn->has_list("perm", {0, 1}) ? 1 : 0];
}

// DynamicQuantizeMatMul: one scale per column.
bool dynamic_matmul_fits(const Graph& graph, const Node& node) {
  enum Input : size_t { kX, kCodes, kScales, kZeroPoints, kBias };
  const uint64_t n = matrix_columns(graph, node.inputs[kCodes]);
  return n > 0 && has_count(constant(graph, node.inputs[kScales]), 1, n) &&
         (node.input(kBias).empty() || has_count(constant(graph, node.inputs[kBias]), 1, n));
}

// The core replaces a GatherND with a batch axis. Without one, exports look up a constant table, with indices that an
// Unsqueeze gave an axis; ONNX Runtime may abort or read out of bounds for others.
bool gather_is_supported(const Graph& graph, const Node& node) {
  if (node.number("batch_dims", 0) == 1) return true;
  const Constant* table = constant(graph, node.inputs[0]);
  if (table == nullptr || std::find(table->shape.begin(), table->shape.end(), 0) != table->shape.end()) return false;
  const auto maker = graph.producers.find(node.inputs[1]);
  if (maker == graph.producers.end()) {
    const Constant* indices = constant(graph, node.inputs[1]);
    return indices != nullptr && !indices->shape.empty();
  }
  const Node& widened = graph.nodes[maker->second];
  const Constant* added = widened.inputs.size() == 2 ? constant(graph, widened.inputs[1]) : nullptr;
  return widened.is("Unsqueeze") && added != nullptr && added->shape.size() == 1 && added->shape[0] > 0;
}

// ONNX Runtime before 1.30 aborts for any other number.
bool split_matches_outputs(const Graph&, const Node& node) {
  const auto parts = static_cast<int64_t>(node.outputs.size());
  return node.number("num_outputs", parts) == parts;
}

bool is_float(DType dtype) { return dtype == DType::kFloat32 || dtype == DType::kFloat16 || dtype == DType::kFloat64; }

// Returns whether a constant has only numbers that divide every integer.
bool divides_integers(const Constant* divisor) {
  if (divisor == nullptr || divisor->raw.empty()) return false;
  const auto all = [&](auto numbers) {
    return std::all_of(numbers.begin(), numbers.end(), [](auto number) { return number > 0; });
  };
  if (divisor->dtype == DType::kInt64) return all(divisor->values<int64_t>(divisor->raw.size() / sizeof(int64_t)));
  if (divisor->dtype == DType::kInt32) return all(divisor->values<int32_t>(divisor->raw.size() / sizeof(int32_t)));
  return false;
}

// Collects the values that are certainly floating-point numbers, from the first node to the last.
class FloatingValues {
 public:
  explicit FloatingValues(const Graph& graph) {
    for (const auto& [name, dtype] : graph.inputs) add(name, is_float(dtype));
    for (const auto& [name, constant] : graph.constants) add(name, is_float(constant.dtype));
  }

  void add_outputs(const Node& node) {
    constexpr std::string_view kIntegers[] = {"And",         "Equal", "Greater", "GreaterOrEqual", "Less",
                                              "LessOrEqual", "Not",   "Or",      "QuantizeLinear", "Shape"};
    const std::string_view type = node.op_type;
    bool floating = contains(node.inputs[type == "Where" ? 1 : 0]);
    if (std::find(std::begin(kIntegers), std::end(kIntegers), type) != std::end(kIntegers)) floating = false;
    if (type == "Cast") floating = is_float(static_cast<DType>(node.number("to", 0)));
    if (type == "DequantizeLinear" || type == "GatherBlockQuantized") floating = true;
    for (std::string_view output : node.outputs) add(output, floating);
  }

  bool contains(std::string_view name) const { return names_.count(name) != 0; }

 private:
  void add(std::string_view name, bool floating) {
    if (floating) names_.emplace(name, true);
  }

  NameMap<bool> names_;
};

// Integers must not be divided by 0, nor the lowest by -1.
bool can_divide(const Graph& graph, const Node& node, const FloatingValues& floating) {
  if (node.op_type != "Div" && node.op_type != "ReduceMean") return true;
  if (floating.contains(node.inputs[0])) return true;
  return node.op_type != "ReduceMean" &&
         (floating.contains(node.inputs[1]) || divides_integers(constant(graph, node.inputs[1])));
}

void check_operands(const Graph& graph, const Node& node) {
  struct Check {
    std::string_view op_type;
    bool (*fits)(const Graph& graph, const Node& node);
    const char* fault;
  };
  static constexpr Check kChecks[] = {
      {"MatMulNBits", matmul_nbits_fits, "its weights do not fit its sizes"},
      {"GatherBlockQuantized", block_table_fits, "its table does not fit its blocks"},
      {"DynamicQuantizeMatMul", dynamic_matmul_fits, "its weights do not fit each other"},
      {"GatherND", gather_is_supported, "it has no constant table, or its indices may lack an axis"},
      {"Split", split_matches_outputs, "it has different numbers of parts and outputs"},
  };
  for (const Check& check : kChecks) {
    if (node.op_type == check.op_type && !check.fits(graph, node)) throw std::runtime_error(check.fault);
  }
}

}  // namespace

void check_operators(std::string_view bytes, const ModelContents& found, bool for_tensorrt) {
  constexpr size_t kMaxNodes = 50'000;  // far above a language model of 100 layers
  const OnnxModel model(bytes);
  if (model.has_functions || model.has_training) throw OperatorError("it has functions or training graphs");
  for (std::string_view domain : found.domains) {
    if (domain.empty() || domain == "com.microsoft") continue;
    throw OperatorError("it uses the domain " + quoted(domain) + ", which exports do not");
  }
  const Graph graph(model.graph);
  if (graph.nodes.size() > kMaxNodes) {
    throw OperatorError("it has " + std::to_string(graph.nodes.size()) + " nodes, more than " +
                        std::to_string(kMaxNodes));
  }
  constexpr size_t kMaxOutputs = 4096;  // as far above its keys and values
  if (graph.outputs.size() > kMaxOutputs) {
    throw OperatorError("it has " + std::to_string(graph.outputs.size()) + " outputs, more than " +
                        std::to_string(kMaxOutputs));
  }
  constexpr uint64_t kOldest = 17, kNewest = 24;
  if (model.opset < kOldest || model.opset > kNewest) {
    throw OperatorError("it is of opset " + std::to_string(model.opset) + ", and exports write " +
                        std::to_string(kOldest) + " to " + std::to_string(kNewest));
  }
  // ONNX Runtime plans fusions and memory by the shapes that a graph declares.
  if (graph.has_value_info) throw OperatorError("it declares the shapes of computed values, which exports do not");
  const bool rewritable = is_rewritable(model, graph);
  const bool replaces_attention = rewritable && !rewrite_cache_attention(graph).empty();
  FloatingValues floating(graph);
  for (const Node& node : graph.nodes) {
    try {
      check_allowed(graph, node, for_tensorrt);
      check_operands(graph, node);
      if (!can_divide(graph, node, floating)) throw std::runtime_error("it may divide integers by 0 or -1");
      // ONNX Runtime's own trust lengths, positions and shapes.
      if ((node.op_type == "GroupQueryAttention" && !replaces_attention) || (node.op_type == kSkipNorm && !rewritable))
        throw std::runtime_error("the core cannot replace it");
    } catch (const std::runtime_error& error) {
      const std::string_view name = node.name.empty() && !node.outputs.empty() ? node.outputs[0] : node.name;
      throw OperatorError("node " + quoted(name) + " (" + std::string(single_line(node.op_type)) +
                          "): " + error.what());
    }
    floating.add_outputs(node);
  }
}

}  // namespace blip2rt
