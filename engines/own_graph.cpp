// A walk over an ONNX graph's bytes that puts our operators in place of ONNX Runtime's.
#include "own_graph.h"

#include <cstring>
#include <map>
#include <string_view>
#include <utility>

#include "attention.h"
#include "int4_matmul.h"
#include "int8_matmul.h"
#include "own_ops.h"
#include "protobuf.h"

namespace blip2rt {
namespace {

// Field numbers of onnx.proto.
enum Model : uint32_t { kGraph = 7, kOpsetImport = 8 };
enum Graph : uint32_t { kNode = 1, kInitializer = 5, kGraphInput = 11, kGraphOutput = 12 };
enum NodeField : uint32_t {
  kNodeInput = 1,
  kNodeOutput = 2,
  kNodeName = 3,
  kOpType = 4,
  kAttribute = 5,
  kNodeDomain = 7
};
enum AttributeField : uint32_t {
  kAttributeName = 1,
  kAttributeFloat = 2,
  kAttributeInt = 3,
  kAttributeGraph = 6,
  kAttributeInts = 8,
  kAttributeGraphs = 11,
  kAttributeType = 20
};
enum Tensor : uint32_t { kDims = 1, kDataType = 2, kTensorName = 8 };
enum Opset : uint32_t { kOpsetDomain = 1, kOpsetVersion = 2 };
enum ValueField : uint32_t { kValueName = 1, kValueType = 2 };
enum Type : uint32_t { kTensorType = 1, kElementType = 1, kShape = 2, kDimension = 1, kDimValue = 1, kDimName = 2 };

struct Node {
  std::vector<std::string_view> inputs, outputs;
  std::string_view name, op_type, domain, whole;
  std::map<std::string_view, int64_t> numbers;  // attributes
  std::map<std::string_view, float> floats;
  std::map<std::string_view, std::vector<uint64_t>> lists;
  bool has_graph = false;
};

Node read_node(std::string_view bytes) {
  Node node;
  node.whole = bytes;
  protobuf::Field field, part;
  for (protobuf::Reader reader(bytes); reader.next(field);) {
    switch (field.number) {
      case kNodeInput: node.inputs.push_back(field.bytes); break;
      case kNodeOutput: node.outputs.push_back(field.bytes); break;
      case kNodeName: node.name = field.bytes; break;
      case kOpType: node.op_type = field.bytes; break;
      case kNodeDomain: node.domain = field.bytes; break;
      case kAttribute: {
        std::string_view name;
        int64_t number = 0;
        float value = 0;
        std::vector<uint64_t> list;
        for (protobuf::Reader attribute(field.bytes); attribute.next(part);) {
          if (part.number == kAttributeName) name = part.bytes;
          if (part.number == kAttributeInt) number = static_cast<int64_t>(part.value);
          if (part.number == kAttributeFloat) {
            const uint32_t bits = static_cast<uint32_t>(part.value);
            std::memcpy(&value, &bits, sizeof value);
          }
          if (part.number == kAttributeInts && part.bytes.empty()) list.push_back(part.value);
          if (part.number == kAttributeInts) protobuf::read_packed(part.bytes, list);
          if (part.number == kAttributeGraph || part.number == kAttributeGraphs) node.has_graph = true;
        }
        node.numbers[name] = number;
        node.floats[name] = value;
        node.lists[name] = list;
        break;
      }
      default: break;
    }
  }
  return node;
}

struct Constant {
  DType dtype = DType::kUndefined;
  std::vector<uint64_t> shape;
};

Constant read_constant(std::string_view bytes, std::string_view& name) {
  Constant constant;
  protobuf::Field field;
  for (protobuf::Reader reader(bytes); reader.next(field);) {
    if (field.number == kDims && field.bytes.empty()) constant.shape.push_back(field.value);
    if (field.number == kDims) protobuf::read_packed(field.bytes, constant.shape);
    if (field.number == kDataType) constant.dtype = static_cast<DType>(field.value);
    if (field.number == kTensorName) name = field.bytes;
  }
  return constant;
}

// Constants by name, nodes, and how often a name is used.
struct Parts {
  std::map<std::string_view, Constant> constants;
  std::vector<Node> nodes;
  std::map<std::string_view, size_t> uses, made_by;  // made_by: the node's place among `nodes`
  bool has_graph = false;

  explicit Parts(std::string_view graph) {
    protobuf::Field field, part;
    for (protobuf::Reader reader(graph); reader.next(field);) {
      if (field.number == kInitializer) {
        std::string_view name;
        const Constant constant = read_constant(field.bytes, name);
        constants[name] = constant;
      } else if (field.number == kNode) {
        nodes.push_back(read_node(field.bytes));
        has_graph = has_graph || nodes.back().has_graph;
        for (std::string_view input : nodes.back().inputs) ++uses[input];
        for (std::string_view output : nodes.back().outputs) made_by[output] = nodes.size() - 1;
      } else if (field.number == kGraphOutput) {
        for (protobuf::Reader value(field.bytes); value.next(part);) {
          if (part.number == kValueName) ++uses[part.bytes];
        }
      }
    }
  }

  // The node of this type with `inputs` inputs that makes a value nobody else reads; nullptr where there is none.
  const Node* maker(std::string_view value, std::string_view op_type, size_t inputs) const {
    const auto found = made_by.find(value);
    if (found == made_by.end()) return nullptr;
    const Node& node = nodes[found->second];
    const auto used = uses.find(value);
    const bool alone = used != uses.end() && used->second == 1 && node.outputs.size() == 1;
    return alone && node.op_type == op_type && node.domain.empty() && node.inputs.size() == inputs ? &node : nullptr;
  }

  // nullptr where it is none, or of another type.
  const Constant* constant(std::string_view name, DType dtype) const {
    const auto found = constants.find(name);
    return found != constants.end() && found->second.dtype == dtype ? &found->second : nullptr;
  }
};

using Numbers = std::vector<std::pair<std::string_view, uint64_t>>;
using Factors = std::vector<std::pair<std::string_view, float>>;

// `field` is where a value of `type` stands.
template <class T>
void write_attribute(std::string& node, std::string_view name, uint32_t field, uint64_t type, T value) {
  std::string attribute;
  protobuf::write(attribute, kAttributeName, name);
  protobuf::write(attribute, field, value);
  protobuf::write(attribute, kAttributeType, type);
  protobuf::write(node, kAttribute, attribute);
}

std::string own_node(const Node& node, std::string_view type, const std::vector<std::string_view>& inputs,
                     const Numbers& numbers, const Factors& factors = {}) {
  constexpr uint64_t kFloat = 1, kInt = 2;
  std::string result;
  for (std::string_view input : inputs) protobuf::write(result, kNodeInput, input);
  for (std::string_view output : node.outputs) protobuf::write(result, kNodeOutput, output);
  protobuf::write(result, kNodeName, node.name);
  protobuf::write(result, kOpType, type);
  for (const auto& [name, number] : numbers) write_attribute(result, name, kAttributeInt, kInt, number);
  for (const auto& [name, factor] : factors) write_attribute(result, name, kAttributeFloat, kFloat, factor);
  protobuf::write(result, kNodeDomain, std::string_view(kOwnDomain));
  return result;
}

// A cast constant -> the constant of float16.
using Halves = std::map<std::string_view, std::string_view>;

// Ours for a MatMulNBits; empty where it is another node, or one that we cannot do.
std::string own_int4(const Node& node, Parts& parts, const Halves& halves) {
  enum Input : size_t { kX, kCodes, kScales, kZeroPoints, kInputs };
  if (node.op_type != "MatMulNBits" || node.inputs.size() != kInputs || int4_kernel() == nullptr) return "";
  const auto number = [&](const char* name) {
    const auto found = node.numbers.find(name);
    return found == node.numbers.end() ? 0 : found->second;
  };
  const int64_t block = number("block_size"), n = number("N"), k = number("K");
  const auto scales = halves.find(node.inputs[kScales]);
  if (number("bits") != 4 || (block != 32 && block != 64 && block != 128) || n <= 0 || k <= 0 ||
      scales == halves.end() || parts.constant(node.inputs[kCodes], DType::kUInt8) == nullptr ||
      parts.constant(node.inputs[kZeroPoints], DType::kUInt8) == nullptr) {
    return "";
  }
  --parts.uses[scales->first];
  constexpr int64_t kInt8 = 4;  // accuracy_level: activations may be int8; what asks for more gets 16 bits
  return own_node(node, kMatMulInt4, {node.inputs[kX], node.inputs[kCodes], scales->second, node.inputs[kZeroPoints]},
                  {{"N", static_cast<uint64_t>(n)},
                   {"K", static_cast<uint64_t>(k)},
                   {"block_size", static_cast<uint64_t>(block)},
                   {"split", number("accuracy_level") == kInt8 ? 0 : 1}});
}

// Ours for a DynamicQuantizeMatMul; empty where it is another node, or one that we cannot do.
std::string own_int8(const Node& node, const Parts& parts, size_t threads) {
  enum Input : size_t { kX, kCodes, kScales, kZeroPoints, kBias, kInputs };
  if (node.op_type != "DynamicQuantizeMatMul" || node.inputs.size() <= kScales || int8_kernel() == nullptr) return "";
  const auto given = [&](size_t input) { return input < node.inputs.size() && !node.inputs[input].empty(); };
  const Constant* codes = parts.constant(node.inputs[kCodes], DType::kInt8);
  const Constant* scales = parts.constant(node.inputs[kScales], DType::kFloat32);
  if (codes == nullptr || codes->shape.size() != 2 || scales == nullptr || given(kZeroPoints)) return "";
  const uint64_t k = codes->shape[0], n = codes->shape[1];
  const auto is_vector = [&](const Constant* constant) {
    return constant != nullptr && constant->shape.size() == 1 && constant->shape[0] == n;
  };
  if (n == 0 || k == 0 || k > kInt8MostRows || !is_vector(scales)) return "";
  std::vector<std::string_view> inputs = {node.inputs[kX], node.inputs[kCodes], node.inputs[kScales]};
  if (given(kBias)) {
    if (!is_vector(parts.constant(node.inputs[kBias], DType::kFloat32))) return "";
    inputs.push_back(node.inputs[kBias]);
  }
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
    const auto found = node.numbers.find(name);
    return static_cast<uint64_t>(found == node.numbers.end() ? otherwise : found->second);
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

// A graph's input of int32: (B), or (B, columns).
std::string rows_input(std::string_view name, uint64_t columns) {
  std::string rows, of_row, shape, tensor, type, input;
  protobuf::write(rows, kDimName, std::string_view("B"));
  protobuf::write(of_row, kDimValue, columns);
  protobuf::write(shape, kDimension, rows);
  if (columns > 0) protobuf::write(shape, kDimension, of_row);
  protobuf::write(tensor, kElementType, static_cast<uint64_t>(DType::kInt32));
  protobuf::write(tensor, kShape, shape);
  protobuf::write(type, kTensorType, tensor);
  protobuf::write(input, kValueName, name);
  protobuf::write(input, kValueType, type);
  return input;
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

bool starts_with(std::string_view text, std::string_view with) { return text.substr(0, with.size()) == with; }

// Ours for what makes MatMul(Softmax(MatMul(query, cross_key transposed) + mask), cross_value) of every layer; none
// where one is written in another way.
Changes own_cross_attentions(const Parts& parts) {
  constexpr std::string_view kKeys = "cross_key_", kValues = "cross_value_";
  const std::vector<uint64_t> transposed = {0, 1, 3, 2};
  Changes changes;
  size_t found = 0, used = 0;
  for (const auto& [name, uses] : parts.uses) {
    if (starts_with(name, kKeys) || starts_with(name, kValues)) used += uses;
  }
  for (const Node& node : parts.nodes) {
    if (node.op_type != "MatMul" || node.inputs.size() != 2 || !starts_with(node.inputs[1], kValues)) continue;
    const Node* softmax = parts.maker(node.inputs[0], "Softmax", 1);
    const Node* add = softmax == nullptr ? nullptr : parts.maker(softmax->inputs[0], "Add", 2);
    const Node* scores = add == nullptr ? nullptr : parts.maker(add->inputs[0], "MatMul", 2);
    const Node* transpose = scores == nullptr ? nullptr : parts.maker(scores->inputs[1], "Transpose", 1);
    if (transpose == nullptr || !starts_with(transpose->inputs[0], kKeys)) return {};
    const auto axis = softmax->numbers.find("axis");
    const auto order = transpose->lists.find("perm");
    if ((axis != softmax->numbers.end() && axis->second != -1 && axis->second != 3) ||
        order == transpose->lists.end() || order->second != transposed) {
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

std::string attention_name() { return std::string("attention ") + attention_kernel().name; }
std::string int4_name() { return std::string("int4 ") + int4_kernel()->name; }
std::string int8_name() { return std::string("int8 ") + int8_kernel()->name; }

// The graph with our operators; empty where there is nothing to replace.
std::string replace_in_graph(std::string_view graph, OwnOps ops, std::vector<std::string>& kernels) {
  Parts parts(graph);
  if (parts.has_graph) return "";  // a subgraph may use what we would remove
  Halves halves;
  for (const Node& node : parts.nodes) {
    const bool unary = node.inputs.size() == 1 && node.outputs.size() == 1;
    if (unary && node.op_type == "Cast" && node.domain.empty() &&
        parts.constant(node.inputs[0], DType::kFloat16) != nullptr) {
      halves[node.outputs[0]] = node.inputs[0];
    }
  }
  Changes changes, crossing;
  if (ops.attention) changes = own_attentions(parts);
  const bool attention = !changes.empty();
  if (attention) crossing = own_cross_attentions(parts);
  changes.insert(crossing.begin(), crossing.end());
  bool int4 = false, int8 = false;
  for (const Node& node : parts.nodes) {
    if (node.domain != "com.microsoft" || node.outputs.size() != 1) continue;
    std::string own;
    if (ops.int4) own = own_int4(node, parts, halves);
    int4 = int4 || !own.empty();
    if (own.empty() && ops.int8) {
      own = own_int8(node, parts, ops.threads);
      int8 = int8 || !own.empty();
    }
    if (!own.empty()) changes[node.outputs[0]] = own;
  }
  if (attention) kernels.push_back(attention_name());
  if (int4) kernels.push_back(int4_name());
  if (int8) kernels.push_back(int8_name());
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
    } else if (halves.count(output) == 0 || parts.uses[output] > 0) {
      result += field.whole;
    }
    ++node;
  }
  if (attention) protobuf::write(result, kGraphInput, rows_input(kCacheRows, 4));
  if (!crossing.empty()) protobuf::write(result, kGraphInput, rows_input(kEncoderRows, 0));
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
  return names;
}

}  // namespace blip2rt
