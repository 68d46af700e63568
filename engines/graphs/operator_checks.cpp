// Checks operators, and the operands that ONNX Runtime does not check itself: the weights of products, the indices of
// GatherND, and the numbers of heads and parts.
#include "graphs/operator_checks.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <string>

#include "graphs/onnx_graph.h"
#include "ort/utf8.h"

namespace blip2rt {
namespace {

constexpr uint64_t kMaxSize = uint64_t{1} << 31;

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

// The core replaces a GatherND with one batch axis. Others may divide by zero or abort in ONNX Runtime.
bool has_one_batch_axis(const Graph&, const Node& node) {
  return node.number("batch_dims", 0) == 1 && node.inputs.size() == 2 && node.outputs.size() == 1;
}

// ONNX Runtime before 1.30 truncates larger numbers to 32 bits, and may then divide by zero.
bool has_valid_heads(const Graph&, const Node& node) {
  constexpr int64_t kMost = 65536;
  const int64_t heads = node.number("num_heads", 0), of_keys = node.number("kv_num_heads", 0);
  return heads > 0 && heads <= kMost && of_keys > 0 && of_keys <= kMost;
}

// ONNX Runtime before 1.30 aborts for any other number.
bool split_matches_outputs(const Graph&, const Node& node) {
  const auto parts = static_cast<int64_t>(node.outputs.size());
  return node.number("num_outputs", parts) == parts;
}

// Throws for non-standard operators except those that exports use: many of them do not check their inputs.
void check_is_exported(const Operator& used) {
  constexpr std::string_view kExported[] = {"DynamicQuantizeMatMul", "GatherBlockQuantized", "GroupQueryAttention",
                                            "MatMulNBits", "SkipSimplifiedLayerNormalization"};
  if (used.domain.empty() || used.domain == "ai.onnx") return;
  const bool exported = std::find(std::begin(kExported), std::end(kExported), used.type) != std::end(kExported);
  if (used.domain == "com.microsoft" && exported) return;
  throw std::runtime_error("it uses the operator " + quoted(used.type) + " of the domain " + quoted(used.domain) +
                           ", which exports do not use");
}

}  // namespace

void check_operators(std::string_view model, const ModelContents& found) {
  struct Check {
    std::string_view op_type;
    bool (*matmul_nbits_fits)(const Graph& graph, const Node& node);
    const char* fault;
  };
  constexpr Check kChecks[] = {
      {"MatMulNBits", matmul_nbits_fits, "the weights of a MatMulNBits do not fit its sizes"},
      {"DynamicQuantizeMatMul", dynamic_matmul_fits, "the weights of a DynamicQuantizeMatMul do not fit each other"},
      {"GatherND", has_one_batch_axis, "a GatherND has not one batch axis, two inputs and one output"},
      {"GroupQueryAttention", has_valid_heads, "a GroupQueryAttention has an invalid number of heads, not 1 to 65536"},
      {"Split", split_matches_outputs, "a Split has different numbers of parts and outputs"},
  };
  for (const Operator& used : found.operators) check_is_exported(used);
  std::optional<Graph> graph;
  for (const Check& check : kChecks) {
    const auto count = std::count_if(found.operators.begin(), found.operators.end(),
                                     [&](const Operator& one) { return one.type == check.op_type; });
    if (count == 0) continue;
    if (!graph) graph.emplace(Model(model).graph);
    std::ptrdiff_t seen = 0;
    for (const Node& node : graph->nodes) {
      if (node.op_type != check.op_type) continue;
      ++seen;
      if (!check.matmul_nbits_fits(*graph, node)) throw std::runtime_error(check.fault);
    }
    if (seen != count) {
      throw std::runtime_error("a " + std::string(check.op_type) + " is in a subgraph or a function");
    }
  }
}

}  // namespace blip2rt
