// Recognises quantized products and replaces them.
#include "graphs/rewrite_matmul.h"

#include "kernels/int4/matmul.h"
#include "kernels/int8/matmul.h"
#include "ops/domain.h"
#include "ops/matmul_op.h"

namespace blip2rt {

namespace {

// Limits far above real sizes, so that products of sizes do not overflow.
constexpr uint64_t kMaxSize = uint64_t{1} << 31;

bool is_size(int64_t size) { return size > 0 && static_cast<uint64_t>(size) < kMaxSize; }

// Returns whether a constant is (n, columns), or the flattened equivalent if `flat` allows that.
bool is_matrix(const Constant* constant, uint64_t n, uint64_t columns, bool flat) {
  return constant != nullptr && (constant->has_shape({n, columns}) || (flat && constant->has_shape({n * columns})));
}

// Adds the addresses of constants to a node's attributes, by name. Returns false if one has none.
bool add_addresses(Weights& weights, std::initializer_list<std::pair<std::string_view, const Constant*>> constants,
                   IntAttributes& to) {
  for (const auto& [name, constant] : constants) {
    const void* address = weights.address(*constant);
    if (address == nullptr) return false;
    to.emplace_back(name, reinterpret_cast<uintptr_t>(address));
  }
  return true;
}

}  // namespace

ConstantSources find_constant_sources(const Graph& graph) {
  constexpr int64_t kFloat = 1;
  ConstantSources sources;
  for (const Node& node : graph.nodes) {
    if (node.inputs.size() != 1 || node.outputs.size() != 1) continue;
    const bool cast =
        node.is("Cast") && node.number("to", 0) == kFloat && graph.constant(node.inputs[0], DType::kFloat16) != nullptr;
    const bool turned = node.is("Transpose") && node.has_list("perm", {1, 0}) &&
                        graph.constant(node.inputs[0], DType::kInt8) != nullptr;
    if (cast || turned) sources[node.outputs[0]] = node.inputs[0];
  }
  return sources;
}

std::string rewrite_int4(const Node& node, Graph& graph, const ConstantSources& sources, size_t threads,
                         Weights& weights) {
  enum Input : size_t { kX, kCodes, kScales, kZeroPoints, kInputs };
  if (node.op_type != "MatMulNBits" || node.inputs.size() != kInputs || int4_kernel() == nullptr) return "";
  const auto number = [&](const char* name) { return node.number(name, 0); };
  const int64_t block = number("block_size"), n = number("N"), k = number("K");
  if (number("bits") != 4 || (block != 32 && block != 64 && block != 128) || !is_size(n) || !is_size(k) ||
      !node.has_only({"bits", "block_size", "N", "K", "accuracy_level"})) {
    return "";
  }
  const auto rows = static_cast<uint64_t>(n), half = static_cast<uint64_t>(block / 2);
  const auto blocks = static_cast<uint64_t>((k + block - 1) / block);
  const auto cast = sources.find(node.inputs[kScales]);
  const Constant* scales = cast == sources.end() ? nullptr : graph.constant(cast->second, DType::kFloat16);
  const Constant* codes = graph.constant(node.inputs[kCodes], DType::kUInt8);
  const Constant* zeros = graph.constant(node.inputs[kZeroPoints], DType::kUInt8);
  if (codes == nullptr || !codes->has_shape({rows, blocks, half}) || !is_matrix(scales, rows, blocks, true) ||
      !is_matrix(zeros, rows, (blocks + 1) / 2, true)) {
    return "";
  }
  constexpr int64_t kInt8 = 4;  // accuracy_level 4: int8 activations; other levels get 16 bits
  IntAttributes attributes = {{"N", rows},
                              {"K", static_cast<uint64_t>(k)},
                              {"block_size", static_cast<uint64_t>(block)},
                              {"split", number("accuracy_level") == kInt8 ? 0 : 1},
                              {"threads", threads}};
  if (!add_addresses(weights, {{"codes", codes}, {"scales", scales}, {"zeros", zeros}}, attributes)) return "";
  for (const Input each : {kCodes, kScales, kZeroPoints}) --graph.use_counts[node.inputs[each]];
  return write_node(node, kDomain, kMatMulInt4, {node.inputs[kX]}, attributes);
}

std::string rewrite_int8(const Node& node, Graph& graph, const ConstantSources& sources, size_t threads,
                         Weights& weights) {
  enum Input : size_t { kX, kCodes, kScales, kZeroPoints, kBias, kInputs };
  if (node.op_type != "DynamicQuantizeMatMul" || node.inputs.size() <= kScales || int8_kernel() == nullptr) return "";
  const auto turned = sources.find(node.inputs[kCodes]);
  const Constant* codes = turned == sources.end() ? nullptr : graph.constant(turned->second, DType::kInt8);
  const Constant* scales = graph.constant(node.inputs[kScales], DType::kFloat32);
  if (codes == nullptr || codes->shape.size() != 2 || !node.input(kZeroPoints).empty() ||
      node.inputs.size() > kInputs || !node.has_only({})) {
    return "";
  }
  const uint64_t n = codes->shape[0], k = codes->shape[1];
  const auto is_vector = [&](const Constant* constant) { return constant != nullptr && constant->has_shape({n}); };
  if (n == 0 || n >= kMaxSize || k == 0 || k > kInt8MaxDepth || !is_vector(scales)) return "";
  IntAttributes attributes = {{"N", n}, {"K", k}, {"threads", threads}};
  if (!add_addresses(weights, {{"codes", codes}, {"scales", scales}}, attributes)) return "";
  if (!node.input(kBias).empty()) {
    const Constant* bias = graph.constant(node.inputs[kBias], DType::kFloat32);
    if (!is_vector(bias) || !add_addresses(weights, {{"bias", bias}}, attributes)) return "";
    --graph.use_counts[node.inputs[kBias]];
  } else {
    attributes.emplace_back("bias", 0);
  }
  for (const Input each : {kCodes, kScales}) --graph.use_counts[node.inputs[each]];
  return write_node(node, kDomain, kMatMulInt8, {node.inputs[kX]}, attributes);
}

}  // namespace blip2rt
