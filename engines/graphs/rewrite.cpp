// A walk over an ONNX graph's bytes that puts our operators in place of ONNX Runtime's.
#include "graphs/rewrite.h"

#include <map>
#include <string_view>
#include <utility>

#include "graphs/onnx_graph.h"
#include "graphs/protobuf.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/encoder_attention.h"
#include "kernels/int4/matmul.h"
#include "kernels/int8/matmul.h"
#include "ops/domain.h"

namespace blip2rt {
namespace {

std::string own_node(const Node& node, std::string_view type, const std::vector<std::string_view>& inputs,
                     const Numbers& numbers, const Factors& factors = {}) {
  return written_node(node, kOwnDomain, type, inputs, numbers, factors);
}

// What is made of a constant for ONNX Runtime's operators -> the constant, which ours read as it is: scales cast from
// float16, int8 codes transposed.
using Stored = std::map<std::string_view, std::string_view>;

Stored stored_of(const Parts& parts) {
  Stored stored;
  for (const Node& node : parts.nodes) {
    if (node.inputs.size() != 1 || node.outputs.size() != 1 || !node.domain.empty()) continue;
    const bool cast = node.op_type == "Cast" && parts.constant(node.inputs[0], DType::kFloat16) != nullptr;
    const bool turned = node.op_type == "Transpose" && node.has_list("perm", {1, 0}) &&
                        parts.constant(node.inputs[0], DType::kInt8) != nullptr;
    if (cast || turned) stored[node.outputs[0]] = node.inputs[0];
  }
  return stored;
}

// Ours for a MatMulNBits; empty where it is another node, or one that we cannot do.
std::string own_int4(const Node& node, Parts& parts, const Stored& stored, size_t threads) {
  enum Input : size_t { kX, kCodes, kScales, kZeroPoints, kInputs };
  if (node.op_type != "MatMulNBits" || node.inputs.size() != kInputs || int4_kernel() == nullptr) return "";
  const auto number = [&](const char* name) { return node.number(name, 0); };
  const int64_t block = number("block_size"), n = number("N"), k = number("K");
  const auto scales = stored.find(node.inputs[kScales]);
  if (number("bits") != 4 || (block != 32 && block != 64 && block != 128) || n <= 0 || k <= 0 ||
      scales == stored.end() || parts.constant(node.inputs[kCodes], DType::kUInt8) == nullptr ||
      parts.constant(node.inputs[kZeroPoints], DType::kUInt8) == nullptr) {
    return "";
  }
  --parts.uses[scales->first];
  constexpr int64_t kInt8 = 4;  // accuracy_level: activations may be int8; what asks for more gets 16 bits
  return own_node(node, kMatMulInt4, {node.inputs[kX], node.inputs[kCodes], scales->second, node.inputs[kZeroPoints]},
                  {{"N", static_cast<uint64_t>(n)},
                   {"K", static_cast<uint64_t>(k)},
                   {"block_size", static_cast<uint64_t>(block)},
                   {"split", number("accuracy_level") == kInt8 ? 0 : 1},
                   {"threads", threads}});
}

// Ours for a DynamicQuantizeMatMul of codes that are transposed; empty where it is another node, or one that we cannot
// do.
std::string own_int8(const Node& node, Parts& parts, const Stored& stored, size_t threads) {
  enum Input : size_t { kX, kCodes, kScales, kZeroPoints, kBias, kInputs };
  if (node.op_type != "DynamicQuantizeMatMul" || node.inputs.size() <= kScales || int8_kernel() == nullptr) return "";
  const auto given = [&](size_t input) { return input < node.inputs.size() && !node.inputs[input].empty(); };
  const auto turned = stored.find(node.inputs[kCodes]);
  const Constant* codes = turned == stored.end() ? nullptr : parts.constant(turned->second, DType::kInt8);
  const Constant* scales = parts.constant(node.inputs[kScales], DType::kFloat32);
  if (codes == nullptr || codes->shape.size() != 2 || scales == nullptr || given(kZeroPoints)) return "";
  const uint64_t n = codes->shape[0], k = codes->shape[1];
  const auto is_vector = [&](const Constant* constant) {
    return constant != nullptr && constant->shape.size() == 1 && constant->shape[0] == n;
  };
  if (n == 0 || k == 0 || k > kInt8MostDepth || !is_vector(scales)) return "";
  std::vector<std::string_view> inputs = {node.inputs[kX], turned->second, node.inputs[kScales]};
  if (given(kBias)) {
    if (!is_vector(parts.constant(node.inputs[kBias], DType::kFloat32))) return "";
    inputs.push_back(node.inputs[kBias]);
  }
  --parts.uses[turned->first];
  return own_node(node, kMatMulInt8, inputs,
                  {{"N", n}, {"K", k}, {"bias", inputs.size() > kZeroPoints}, {"threads", threads}});
}

// Ours for a GroupQueryAttention; empty where it asks for what ours cannot do.
std::string own_attention(const Node& node) {
  enum Input : size_t {
    kQuery,
    kKey,
    kValue,
    kPastKey,
    kPastValue,
    kLengths,
    kTotal,
    kCos,
    kSin,
    kPositions,
    kBias,
    kInputs
  };
  constexpr size_t kOutputs = 3;
  const auto is_ours = [](std::string_view name) {
    for (const char* known : {"num_heads", "kv_num_heads", "local_window_size", "do_rotary", "scale", "softcap"}) {
      if (name == known) return true;
    }
    return false;
  };
  for (const auto& [name, number] : node.numbers) {
    if (!is_ours(name) && (number != 0 || node.floats.at(name) != 0)) return "";
  }
  const auto input = [&](size_t index) { return index < node.inputs.size() ? node.inputs[index] : std::string_view(); };
  const auto number = [&](const char* name, int64_t otherwise) {
    return static_cast<uint64_t>(node.number(name, otherwise));
  };
  const auto factor = [&](const char* name) {
    const auto found = node.floats.find(name);
    return found == node.floats.end() ? 0.0f : found->second;
  };
  const bool rotates = number("do_rotary", 0) != 0;
  if (node.outputs.size() != kOutputs || node.inputs.size() > kInputs || !input(kPositions).empty() ||
      input(kPastKey).empty() || input(kPastValue).empty() ||
      (rotates && (input(kCos).empty() || input(kSin).empty()))) {
    return "";
  }
  const std::string_view none;
  return own_node(node, kOwnAttention,
                  {input(kQuery), input(kKey), input(kValue), input(kPastKey), input(kPastValue), kCacheRows,
                   rotates ? input(kCos) : none, rotates ? input(kSin) : none, input(kBias)},
                  {{"num_heads", number("num_heads", 0)},
                   {"kv_num_heads", number("kv_num_heads", 0)},
                   {"local_window_size", number("local_window_size", -1)}},
                  {{"scale", factor("scale")}, {"softcap", factor("softcap")}});
}

// What becomes of a graph's nodes, by their first output: another node, or none where it is empty.
using Changes = std::map<std::string_view, std::string>;

// Ours for every GroupQueryAttention; none where one of them is to stay, as they share a cache.
Changes own_attentions(const Parts& parts) {
  Changes changes;
  for (const Node& node : parts.nodes) {
    if (node.domain != "com.microsoft" || node.op_type != "GroupQueryAttention") continue;
    const std::string own = own_attention(node);
    if (own.empty()) return {};
    changes[node.outputs[0]] = own;
  }
  return changes;
}

// Whether a node is about the last of so many axes; `otherwise`: about which it is when it does not say.
bool is_over_last_axis(const Node& node, int64_t axes, int64_t otherwise) {
  const int64_t axis = node.number("axis", otherwise);
  return axis == -1 || axis == axes - 1;
}

bool starts_with(std::string_view text, std::string_view with) { return text.substr(0, with.size()) == with; }

// Ours for what makes MatMul(Softmax(MatMul(query, cross_key transposed) + mask), cross_value) of every layer; none
// where one is written in another way.
Changes own_cross_attentions(const Parts& parts) {
  constexpr std::string_view kKeys = "cross_key_", kValues = "cross_value_";
  Changes changes;
  size_t found = 0, used = 0;
  for (const auto& [name, uses] : parts.uses) {
    if (starts_with(name, kKeys) || starts_with(name, kValues)) used += uses;
  }
  for (const Node& node : parts.nodes) {
    if (node.op_type != "MatMul" || node.inputs.size() != 2 || !starts_with(node.inputs[1], kValues)) continue;
    const Node* softmax = parts.maker(&node, 0, "Softmax", 1);
    const Node* add = parts.maker(softmax, 0, "Add", 2);
    const Node* scores = parts.maker(add, 0, "MatMul", 2);
    const Node* transpose = parts.maker(scores, 1, "Transpose", 1);
    if (transpose == nullptr || !starts_with(transpose->inputs[0], kKeys) || !is_over_last_axis(*softmax, 4, -1) ||
        !transpose->has_list("perm", {0, 1, 3, 2})) {
      return {};
    }
    for (const Node* dropped : {softmax, add, scores, transpose}) changes[dropped->outputs[0]] = "";
    changes[node.outputs[0]] =
        own_node(node, kOwnCrossAttention,
                 {scores->inputs[0], transpose->inputs[0], node.inputs[1], add->inputs[1], kEncoderRows}, {});
    ++found;
  }
  return 2 * found == used ? changes : Changes();
}

// Ours for what a vision transformer does with the product that makes its queries, keys and values: Split in three, of
// each Reshape into heads and Transpose; MatMul(Softmax(MatMul(query, key) * scale), value), Transpose and Reshape
// back.
Changes own_encoder_attentions(const Parts& parts) {
  Changes changes;
  if (encoder_attention_kernel() == nullptr) return changes;
  for (const Node& node : parts.nodes) {
    if (node.op_type != "Reshape" || node.inputs.size() != 2) continue;
    const Node* back = parts.maker(&node, 0, "Transpose", 1);
    const Node* sum = parts.maker(back, 0, "MatMul", 2);
    const Node* softmax = parts.maker(sum, 0, "Softmax", 1);
    const Node* scaled = parts.maker(softmax, 0, "Mul", 2);
    const Node* scores = parts.maker(scaled, 0, "MatMul", 2);
    const Node* turned[] = {parts.maker(scores, 0, "Transpose", 1), parts.maker(scores, 1, "Transpose", 1),
                            parts.maker(sum, 1, "Transpose", 1)};
    const Node *heads[3], *split = nullptr;
    for (size_t i = 0; i < 3; ++i) {
      heads[i] = parts.maker(turned[i], 0, "Reshape", 2);
      const Node* whole = parts.maker(heads[i], 0, "Split", 1);
      const bool alike =
          i == 0 || (heads[i] != nullptr && whole == split && heads[i]->inputs[1] == heads[0]->inputs[1]);
      split = alike && whole != nullptr && whole->outputs.size() == 3 && whole->outputs[i] == heads[i]->inputs[0]
                  ? whole
                  : nullptr;
      if (split == nullptr) break;
    }
    if (split == nullptr || !turned[0]->has_list("perm", {0, 2, 1, 3}) || !turned[1]->has_list("perm", {0, 2, 3, 1}) ||
        !turned[2]->has_list("perm", {0, 2, 1, 3}) || !back->has_list("perm", {0, 2, 1, 3}) ||
        !is_over_last_axis(*softmax, 4, -1) || !is_over_last_axis(*split, 3, 0)) {
      continue;
    }
    const auto values = [&](std::string_view name, DType type, auto like, size_t count) {
      const Constant* constant = parts.constant(name, type);
      return constant == nullptr ? std::vector<decltype(like)>() : constant->values<decltype(like)>(count);
    };
    const auto shape = values(heads[0]->inputs[1], DType::kInt64, int64_t(), 4);
    const auto joined = values(node.inputs[1], DType::kInt64, int64_t(), 3);
    const auto scale = values(scaled->inputs[1], DType::kFloat32, float(), 1);
    if (shape.empty() || joined.empty() || scale.empty() || shape[1] <= 0 || shape[2] <= 0 || shape[3] <= 0 ||
        joined[0] != shape[0] || joined[1] != shape[1] || joined[2] != shape[2] * shape[3]) {
      continue;
    }
    for (const Node* dropped : {back, sum, softmax, scaled, scores, split}) changes[dropped->outputs[0]] = "";
    for (size_t i = 0; i < 3; ++i) changes[turned[i]->outputs[0]] = changes[heads[i]->outputs[0]] = "";
    changes[node.outputs[0]] =
        own_node(node, kOwnEncoderAttention, {split->inputs[0]},
                 {{"positions", static_cast<uint64_t>(shape[1])}, {"num_heads", static_cast<uint64_t>(shape[2])}},
                 {{"scale", scale[0]}});
  }
  return changes;
}

std::string attention_name() { return std::string("attention ") + attention_kernel().name; }
std::string int4_name() { return std::string("int4 ") + int4_kernel()->name; }
std::string int8_name() { return std::string("int8 ") + int8_kernel()->name; }
std::string encoder_attention_name() { return std::string("encoder attention ") + encoder_attention_kernel()->name; }

// The graph with our operators; empty where there is nothing to replace.
std::string replace_in_graph(std::string_view graph, OwnOps ops, std::vector<std::string>& kernels) {
  Parts parts(graph);
  if (parts.has_graph) return "";  // a subgraph may use what we would remove
  const Stored stored = stored_of(parts);
  Changes changes, crossing;
  if (ops.attention) changes = own_attentions(parts);
  const bool attention = !changes.empty();
  if (attention) crossing = own_cross_attentions(parts);
  changes.insert(crossing.begin(), crossing.end());
  bool int4 = false, int8 = false;
  for (const Node& node : parts.nodes) {
    if (node.domain != "com.microsoft" || node.outputs.size() != 1) continue;
    std::string own;
    if (ops.int4) own = own_int4(node, parts, stored, ops.threads);
    int4 = int4 || !own.empty();
    if (own.empty() && ops.int8) {
      own = own_int8(node, parts, stored, ops.threads);
      int8 = int8 || !own.empty();
    }
    if (!own.empty()) changes[node.outputs[0]] = own;
  }
  // Where products are int8, what the attention's bfloat16 costs is below what they do.
  Changes encoder;
  if (int8) encoder = own_encoder_attentions(parts);
  changes.insert(encoder.begin(), encoder.end());
  if (attention) kernels.push_back(attention_name());
  if (int4) kernels.push_back(int4_name());
  if (int8) kernels.push_back(int8_name());
  if (!encoder.empty()) kernels.push_back(encoder_attention_name());
  if (changes.empty()) return "";
  std::string result;
  protobuf::Field field;
  auto node = parts.nodes.begin();
  for (protobuf::Reader reader(graph); reader.next(field);) {
    if (field.number != kNode) {
      result += field.whole;
      continue;
    }
    const std::string_view output = node->outputs.empty() ? std::string_view() : node->outputs[0];
    const auto change = changes.find(output);
    if (change != changes.end()) {
      if (!change->second.empty()) protobuf::write(result, kNode, change->second);
    } else if (stored.count(output) == 0 || parts.uses[output] > 0) {
      result += field.whole;
    }
    ++node;
  }
  if (attention) protobuf::write(result, kGraphInput, written_input(kCacheRows, 4));
  if (!crossing.empty()) protobuf::write(result, kGraphInput, written_input(kEncoderRows, 0));
  return result;
}

}  // namespace

OwnGraph with_own_ops(const std::string& bytes, OwnOps ops) {
  OwnGraph own;
  std::string result, graph;
  protobuf::Field field;
  for (protobuf::Reader reader(bytes); reader.next(field);) {
    if (field.number != kGraph) {
      result += field.whole;
      continue;
    }
    graph = replace_in_graph(field.bytes, ops, own.kernels);
    protobuf::write(result, kGraph, graph);
  }
  if (graph.empty()) return {};
  std::string opset;
  protobuf::write(opset, kOpsetDomain, std::string_view(kOwnDomain));
  protobuf::write(opset, kOpsetVersion, uint64_t{1});
  protobuf::write(result, kOpsetImport, opset);
  own.bytes = std::move(result);
  return own;
}

std::vector<std::string> processor_kernels() {
  std::vector<std::string> names = {attention_name()};
  if (int4_kernel() != nullptr) names.push_back(int4_name());
  if (int8_kernel() != nullptr) names.push_back(int8_name());
  if (encoder_attention_kernel() != nullptr) names.push_back(encoder_attention_name());
  return names;
}

}  // namespace blip2rt
