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

namespace blip2rt {
namespace {

constexpr uint64_t kMaxSize = uint64_t{1} << 31;
constexpr std::string_view kSkipNorm = "SkipSimplifiedLayerNormalization";

// Returns a constant that is no graph input, or nullptr.
const Constant* constant(const Graph& graph, std::string_view name) {
  const auto found = graph.constants.find(name);
  return found == graph.constants.end() || graph.inputs.count(name) != 0 ? nullptr : &found->second;
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

bool matmul_nbits_fits(const Graph& graph, const Node& node) {
  enum Input : size_t { kX, kCodes, kScales, kZeroPoints, kOrder, kBias, kInputs };
  const auto is_given = [&](size_t input) { return !node.input(input).empty(); };
  const auto size = [&](const char* name, int64_t otherwise) -> uint64_t {
    const int64_t number = node.number(name, otherwise);
    return number < 1 || static_cast<uint64_t>(number) >= kMaxSize ? 0 : static_cast<uint64_t>(number);
  };
  const uint64_t n = size("N", 0), k = size("K", 0), block = size("block_size", 0), bits = size("bits", 4);
  if (n == 0 || k == 0 || block < 16 || (block & (block - 1)) != 0 || (bits != 2 && bits != 4 && bits != 8))
    return false;
  if (!is_given(kX) || !is_given(kCodes) || !is_given(kScales) || node.inputs.size() > kInputs) return false;
  const uint64_t blocks = (k + block - 1) / block;
  const Constant* codes = constant(graph, node.inputs[kCodes]);
  if (codes == nullptr || codes->dtype != DType::kUInt8 || !has_count(codes, n, blocks * (block * bits / 8)) ||
      !has_count(constant_behind_cast(graph, node.inputs[kScales]), n, blocks)) {
    return false;
  }
  if (is_given(kZeroPoints)) {
    const Constant* zeros = constant(graph, node.inputs[kZeroPoints]);
    const bool packed = zeros != nullptr && zeros->dtype == DType::kUInt8;
    if (!has_count(zeros, n, packed ? (blocks * bits + 7) / 8 : blocks)) return false;
  }
  if (is_given(kOrder)) {
    const Constant* order = constant(graph, node.inputs[kOrder]);
    if (!has_count(order, 1, k) && !has_count(order, 1, blocks * block)) return false;
  }
  return !is_given(kBias) || has_count(constant(graph, node.inputs[kBias]), 1, n);
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

// DynamicQuantizeMatMul: scales and zero points per column, or one for all.
bool dynamic_matmul_fits(const Graph& graph, const Node& node) {
  enum Input : size_t { kX, kCodes, kScales, kZeroPoints, kBias, kInputs };
  const auto is_given = [&](size_t input) { return !node.input(input).empty(); };
  if (!is_given(kX) || !is_given(kCodes) || !is_given(kScales) || node.inputs.size() > kInputs) return false;
  const uint64_t n = matrix_columns(graph, node.inputs[kCodes]);
  const auto has_one_each = [&](size_t input) {
    const Constant* numbers = constant(graph, node.inputs[input]);
    return has_count(numbers, 1, n) || has_count(numbers, 1, 1);
  };
  if (n == 0 || !has_one_each(kScales) || (is_given(kZeroPoints) && !has_one_each(kZeroPoints))) return false;
  return !is_given(kBias) || has_count(constant(graph, node.inputs[kBias]), 1, n);
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

// ONNX Runtime 1.23 aborts for a single number, if there are no elements.
bool axes_are_a_list(const Graph& graph, const Node& node) {
  const Constant* axes = node.inputs.size() < 2 ? nullptr : constant(graph, node.inputs[1]);
  return node.inputs.size() < 2 || (axes != nullptr && axes->shape.size() == 1);
}

// ONNX Runtime 1.23 aborts if it takes the kernel's axes from weights of another rank.
bool names_its_kernel(const Graph&, const Node& node) { return node.lists.count("kernel_shape") != 0; }

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

// Collects the values that are certainly floating-point numbers, and those that certainly have an axis, from the first
// node to the last.
class KnownValues {
 public:
  explicit KnownValues(const Graph& graph) {
    for (const auto& [name, dtype] : graph.inputs) add(name, is_float(dtype), graph.input_ranks.at(name) > 0);
    for (const auto& [name, constant] : graph.constants) {
      add(name, is_float(constant.dtype), !constant.shape.empty());
    }
  }

  void add_outputs(const Node& node) {
    constexpr std::string_view kIntegers[] = {"And",         "Equal", "Greater", "GreaterOrEqual", "Less",
                                              "LessOrEqual", "Not",   "Or",      "QuantizeLinear", "Shape"};
    const std::string_view type = node.op_type;
    bool floating = is_floating(node.inputs[type == "Where" ? 1 : 0]);
    if (std::find(std::begin(kIntegers), std::end(kIntegers), type) != std::end(kIntegers)) floating = false;
    if (type == "Cast") floating = is_float(static_cast<DType>(node.number("to", 0)));
    if (type == "DequantizeLinear" || type == "GatherBlockQuantized") floating = true;
    const bool keeps_axes = type == "Add" || type == "Mul" || type == "Cast" || type == kSkipNorm;
    const bool axes = keeps_axes && std::any_of(node.inputs.begin(), node.inputs.end(),
                                                [this](std::string_view input) { return has_axis(input); });
    for (std::string_view output : node.outputs) add(output, floating, axes);
  }

  bool is_floating(std::string_view name) const { return floating_.count(name) != 0; }
  bool has_axis(std::string_view name) const { return with_axis_.count(name) != 0; }

 private:
  void add(std::string_view name, bool floating, bool axes) {
    if (floating) floating_.insert(name);
    if (axes) with_axis_.insert(name);
  }

  std::set<std::string_view> floating_, with_axis_;
};

// Integers must not be divided by 0, nor the lowest by -1.
bool can_divide(const Graph& graph, const Node& node, const KnownValues& known) {
  if (node.op_type != "Div" && node.op_type != "Mod" && node.op_type != "ReduceMean") return true;
  if (known.is_floating(node.inputs[0])) return true;
  return node.op_type != "ReduceMean" &&
         (known.is_floating(node.inputs[1]) || divides_integers(constant(graph, node.inputs[1])));
}

void check_operands(const Graph& graph, const Node& node) {
  struct Check {
    std::string_view op_type;
    bool (*fits)(const Graph& graph, const Node& node);
    const char* fault;
  };
  static constexpr char kAxes[] = "its axes are not a constant list";
  static constexpr Check kChecks[] = {
      {"MatMulNBits", matmul_nbits_fits, "its weights do not fit its sizes"},
      {"DynamicQuantizeMatMul", dynamic_matmul_fits, "its weights do not fit each other"},
      {"Conv", names_its_kernel, "it has no attribute 'kernel_shape'"},
      {"GatherND", gather_is_supported, "it has no constant table, or its indices may lack an axis"},
      {"ReduceL2", axes_are_a_list, kAxes},
      {"ReduceMean", axes_are_a_list, kAxes},
      {"ReduceSum", axes_are_a_list, kAxes},
      {"Squeeze", axes_are_a_list, kAxes},
      {"Unsqueeze", axes_are_a_list, kAxes},
      {"Split", split_matches_outputs, "it has different numbers of parts and outputs"},
  };
  for (const Check& check : kChecks) {
    if (node.op_type == check.op_type && !check.fits(graph, node)) throw std::runtime_error(check.fault);
  }
}

}  // namespace

void check_operators(std::string_view bytes, const ModelContents& found, bool for_tensorrt) {
  constexpr size_t kMaxNodes = 50'000;  // far above a language model of 100 layers
  const Model model(bytes);
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
  KnownValues known(graph);
  for (const Node& node : graph.nodes) {
    try {
      check_allowed(node, for_tensorrt);
      check_operands(graph, node);
      if (!can_divide(graph, node, known)) throw std::runtime_error("it may divide integers by 0 or -1");
      // ONNX Runtime 1.23 reads out of bounds.
      if (node.op_type == kSkipNorm && !known.has_axis(node.inputs[0]))
        throw std::runtime_error("its input may lack an axis");
    } catch (const std::runtime_error& error) {
      const std::string_view name = node.name.empty() && !node.outputs.empty() ? node.outputs[0] : node.name;
      throw OperatorError("node " + quoted(name) + " (" + std::string(single_line(node.op_type)) +
                          "): " + error.what());
    }
    known.add_outputs(node);
  }
}

}  // namespace blip2rt
