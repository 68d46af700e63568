// A walk over an ONNX graph's bytes that puts our operators in place of ONNX Runtime's.
#include "own_graph.h"

#include <map>
#include <string_view>
#include <utility>

#include "int4_matmul.h"
#include "int8_matmul.h"
#include "matmul_op.h"
#include "protobuf.h"

namespace blip2rt {
namespace {

// Field numbers of onnx.proto.
enum Model : uint32_t { kGraph = 7, kOpsetImport = 8 };
enum Graph : uint32_t { kNode = 1, kInitializer = 5, kGraphOutput = 12 };
enum NodeField : uint32_t {
  kNodeInput = 1,
  kNodeOutput = 2,
  kNodeName = 3,
  kOpType = 4,
  kAttribute = 5,
  kNodeDomain = 7
};
enum AttributeField : uint32_t { kAttributeName = 1, kAttributeInt = 3, kAttributeGraph = 6, kAttributeGraphs = 11 };
enum Tensor : uint32_t { kDims = 1, kDataType = 2, kTensorName = 8 };
enum Opset : uint32_t { kOpsetDomain = 1, kOpsetVersion = 2 };
constexpr uint32_t kValueName = 1;

struct Node {
  std::vector<std::string_view> inputs, outputs;
  std::string_view name, op_type, domain, whole;
  std::map<std::string_view, int64_t> numbers;  // attributes
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
        for (protobuf::Reader attribute(field.bytes); attribute.next(part);) {
          if (part.number == kAttributeName) name = part.bytes;
          if (part.number == kAttributeInt) number = static_cast<int64_t>(part.value);
          if (part.number == kAttributeGraph || part.number == kAttributeGraphs) node.has_graph = true;
        }
        node.numbers[name] = number;
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
  std::map<std::string_view, size_t> uses;
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
      } else if (field.number == kGraphOutput) {
        for (protobuf::Reader value(field.bytes); value.next(part);) {
          if (part.number == kValueName) ++uses[part.bytes];
        }
      }
    }
  }

  // nullptr where it is none, or of another type.
  const Constant* constant(std::string_view name, DType dtype) const {
    const auto found = constants.find(name);
    return found != constants.end() && found->second.dtype == dtype ? &found->second : nullptr;
  }
};

using Numbers = std::vector<std::pair<std::string_view, uint64_t>>;

std::string own_node(const Node& node, std::string_view type, const std::vector<std::string_view>& inputs,
                     const Numbers& numbers) {
  std::string result;
  for (std::string_view input : inputs) protobuf::write(result, kNodeInput, input);
  protobuf::write(result, kNodeOutput, node.outputs[0]);
  protobuf::write(result, kNodeName, node.name);
  protobuf::write(result, kOpType, type);
  for (const auto& [name, number] : numbers) {
    constexpr uint32_t kAttributeType = 20;
    constexpr uint64_t kInt = 2;
    std::string attribute;
    protobuf::write(attribute, kAttributeName, name);
    protobuf::write(attribute, kAttributeInt, number);
    protobuf::write(attribute, kAttributeType, kInt);
    protobuf::write(result, kAttribute, attribute);
  }
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
  return own_node(
      node, kMatMulInt4, {node.inputs[kX], node.inputs[kCodes], scales->second, node.inputs[kZeroPoints]},
      {{"N", static_cast<uint64_t>(n)}, {"K", static_cast<uint64_t>(k)}, {"block_size", static_cast<uint64_t>(block)}});
}

// Ours for a DynamicQuantizeMatMul; empty where it is another node, or one that we cannot do.
std::string own_int8(const Node& node, const Parts& parts) {
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
  return own_node(node, kMatMulInt8, inputs, {{"N", n}, {"K", k}, {"bias", inputs.size() > kZeroPoints}});
}

// The graph with our operators; empty where there is nothing to replace.
std::string replace_in_graph(std::string_view graph, OwnProducts products, std::vector<std::string>& kernels) {
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
  std::map<std::string_view, std::string> replaced;  // by the node's first output
  bool int4 = false, int8 = false;
  for (const Node& node : parts.nodes) {
    if (node.domain != "com.microsoft" || node.outputs.size() != 1) continue;
    std::string own;
    if (products.int4) own = own_int4(node, parts, halves);
    int4 = int4 || !own.empty();
    if (own.empty() && products.int8) {
      own = own_int8(node, parts);
      int8 = int8 || !own.empty();
    }
    if (!own.empty()) replaced[node.outputs[0]] = own;
  }
  if (int4) kernels.push_back(std::string("int4 ") + int4_kernel()->name);
  if (int8) kernels.push_back(std::string("int8 ") + int8_kernel()->name);
  if (replaced.empty()) return "";
  std::string result;
  protobuf::Field field;
  auto node = parts.nodes.begin();
  for (protobuf::Reader reader(graph); reader.next(field);) {
    if (field.number != kNode) {
      result += field.whole;
      continue;
    }
    const std::string_view output = node->outputs.empty() ? std::string_view() : node->outputs[0];
    const auto own = replaced.find(output);
    if (own != replaced.end()) {
      protobuf::write(result, kNode, own->second);
    } else if (halves.count(output) == 0 || parts.uses[output] > 0) {
      result += field.whole;
    }
    ++node;
  }
  return result;
}

}  // namespace

OwnGraph with_own_products(const std::string& bytes, OwnProducts products) {
  OwnGraph own;
  std::string result, graph;
  protobuf::Field field;
  for (protobuf::Reader reader(bytes); reader.next(field);) {
    if (field.number != kGraph) {
      result += field.whole;
      continue;
    }
    graph = replace_in_graph(field.bytes, products, own.kernels);
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

}  // namespace blip2rt
