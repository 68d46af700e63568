// Reads and writes the protobuf messages of ONNX models.
#include "graphs/onnx_graph.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <set>
#include <stdexcept>

#include "graphs/protobuf.h"

namespace blip2rt {
namespace {

using protobuf::submessage;

// Field numbers of onnx.proto.
enum ModelField : uint32_t { kGraph = 7, kOpsetImport = 8, kTraining = 20, kFunction = 25 };
enum GraphField : uint32_t { kNode = 1, kInitializer = 5, kGraphInput = 11, kGraphOutput = 12, kValueInfo = 13 };
enum Opset : uint32_t { kOpsetDomain = 1, kOpsetVersion = 2 };
enum NodeField : uint32_t { kInput = 1, kOutput = 2, kNodeName = 3, kOpType = 4, kAttribute = 5, kNodeDomain = 7 };
enum AttributeField : uint32_t { kAttributeName = 1, kAttributeType = 20, kAttributeReference = 21 };
enum AttributeNumber : uint32_t { kAttributeFloat = 2, kAttributeInt = 3, kAttributeInts = 8 };
enum AttributeContent : uint32_t { kAttributeText = 4, kAttributeGraph = 6, kAttributeGraphs = 11 };
enum TensorField : uint32_t { kDims = 1, kDataType = 2, kTensorName = 8, kRawData = 9, kExternal = 13 };
enum EntryField : uint32_t { kKey = 1, kValue = 2 };
enum ValueField : uint32_t { kValueName = 1, kValueType = 2 };
enum Type : uint32_t { kTensorType = 1, kElementType = 1, kShape = 2, kDimension = 1, kDimValue = 1, kDimName = 2 };

// Appends the values of one repeated integer field, packed or not.
void append(const protobuf::Field& field, std::vector<uint64_t>& to) {
  if (field.wire == protobuf::kBytes) {
    protobuf::read_packed(field.bytes, to);
  } else {
    to.push_back(field.value);
  }
}

// Reads an entry of external data, which read_graph has validated.
void read_entry(std::string_view entry, Constant& constant) {
  const std::string_view key = submessage(entry, kKey), value = submessage(entry, kValue);
  if (key == "location") constant.file = value;
  if (key != "offset") return;
  for (const char digit : value) constant.offset = constant.offset * 10 + static_cast<uint64_t>(digit - '0');
}

Constant read_constant(std::string_view bytes, std::string_view& name) {
  Constant constant;
  protobuf::Field field;
  for (protobuf::Reader reader(bytes); reader.next(field);) {
    if (field.number == kDims) append(field, constant.shape);
    if (field.number == kDataType) constant.dtype = static_cast<DType>(field.value);
    if (field.number == kTensorName) name = field.bytes;
    if (field.number == kRawData) constant.raw = field.bytes;
    if (field.number == kExternal) read_entry(field.bytes, constant);
  }
  return constant;
}

// Writes an attribute; `field` is the field for values of `type`.
template <class T>
void write_attribute(std::string& node, std::string_view name, uint32_t field, uint64_t type, T value) {
  std::string attribute;
  protobuf::write(attribute, kAttributeName, name);
  protobuf::write(attribute, field, value);
  protobuf::write(attribute, kAttributeType, type);
  protobuf::write(node, kAttribute, attribute);
}

}  // namespace

size_t NameHash::operator()(std::string_view name) const {
  // Unknown to who wrote the graph. An empty root has no device of random numbers.
  static const auto now = static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
  static const uint64_t key = (now ^ reinterpret_cast<uintptr_t>(&name)) * 0x9E3779B97F4A7C15 | 1;
  uint64_t hash = key ^ name.size();
  for (size_t at = 0; at < name.size(); at += sizeof hash) {
    uint64_t eight = 0;
    std::memcpy(&eight, name.data() + at, std::min(sizeof eight, name.size() - at));
    __extension__ const auto product = static_cast<unsigned __int128>(hash ^ eight) * key;
    hash = static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
  }
  return hash;
}

ValueInfo::ValueInfo(std::string_view bytes) : name(submessage(bytes, kValueName)) {
  protobuf::Field field, dimension, part;
  for (protobuf::Reader tensor(submessage(submessage(bytes, kValueType), kTensorType)); tensor.next(field);) {
    if (field.number == kElementType) dtype = static_cast<DType>(field.value);
    if (field.number != kShape) continue;
    for (protobuf::Reader dimensions(field.bytes); dimensions.next(dimension);) {
      if (dimension.number != kDimension) continue;
      Axis& axis = shape.emplace_back();
      for (protobuf::Reader parts(dimension.bytes); parts.next(part);) {
        if (part.number == kDimValue) axis.size = static_cast<int64_t>(part.value);
        if (part.number == kDimName) axis.name = part.bytes;
      }
    }
  }
}

Node::Node(std::string_view bytes) {
  protobuf::Field field;
  for (protobuf::Reader reader(bytes); reader.next(field);) {
    switch (field.number) {
      case kInput: inputs.push_back(field.bytes); break;
      case kOutput: outputs.push_back(field.bytes); break;
      case kNodeName: name = field.bytes; break;
      case kOpType: op_type = field.bytes; break;
      case kNodeDomain: domain = field.bytes; break;
      case kAttribute: read_attribute(field.bytes); break;
      default: break;
    }
  }
}

void Node::read_attribute(std::string_view bytes) {
  enum AttributeType : uint64_t { kFloat = 1, kInt = 2, kText = 3, kInts = 7 };
  std::string_view name, text;
  uint64_t type = 0;
  int64_t number = 0;
  float value = 0;
  std::vector<uint64_t> list;
  bool refers = false;
  protobuf::Field part;
  for (protobuf::Reader attribute(bytes); attribute.next(part);) {
    switch (part.number) {
      case kAttributeName: name = part.bytes; break;
      case kAttributeType: type = part.value; break;
      case kAttributeInt: number = static_cast<int64_t>(part.value); break;
      case kAttributeFloat: {
        const uint32_t bits = static_cast<uint32_t>(part.value);
        std::memcpy(&value, &bits, sizeof value);
        break;
      }
      case kAttributeText: text = part.bytes; break;
      case kAttributeInts: append(part, list); break;
      case kAttributeGraph:
      case kAttributeGraphs: has_graph = true; break;
      case kAttributeReference: refers = true; break;
      default: break;
    }
  }
  if (refers) type = 0;
  if (!attribute_types.emplace(name, type).second) throw std::runtime_error("a node has an attribute twice");
  if (type == kInt) ints[name] = number;
  if (type == kFloat) floats[name] = value;
  if (type == kText) texts[name] = text;
  if (type == kInts) lists[name] = list;
}

bool Node::has_only(std::initializer_list<std::string_view> names) const {
  const auto is_known = [&](const auto& attribute) {
    return ints.count(attribute.first) + floats.count(attribute.first) + lists.count(attribute.first) > 0 &&
           std::find(names.begin(), names.end(), attribute.first) != names.end();
  };
  return std::all_of(attribute_types.begin(), attribute_types.end(), is_known);
}

bool Node::is(std::string_view type) const {
  if (op_type != type || !domain.empty()) return false;
  if (type == "Cast") return has_only({"to", "saturate"});
  if (type == "Transpose") return has_only({"perm"});
  if (type == "Split") return has_only({"axis", "num_outputs"});
  if (type == "Softmax") return has_only({"axis"});
  if (type == "Reshape") return has_only({"allowzero"});
  return has_only({});  // MatMul, Mul, Add
}

int64_t Node::number(std::string_view name, int64_t otherwise) const {
  const auto found = ints.find(name);
  return found == ints.end() ? otherwise : found->second;
}

bool Node::has_list(std::string_view name, const std::vector<uint64_t>& list) const {
  const auto found = lists.find(name);
  return found != lists.end() && found->second == list;
}

Graph::Graph(std::string_view graph) {
  const auto require = [](bool is_new) {
    if (!is_new) throw std::runtime_error("two values of the graph have the same name");
  };
  protobuf::Field field;
  size_t count = 0;
  for (protobuf::Reader reader(graph); reader.next(field);) count += field.number == kNode;
  nodes.reserve(count);
  for (protobuf::Reader reader(graph); reader.next(field);) {
    switch (field.number) {
      case kInitializer: {
        std::string_view name;
        const Constant constant = read_constant(field.bytes, name);
        if (!constants.emplace(name, constant).second)
          throw std::runtime_error("two constants of the graph have the same name");
        break;
      }
      case kNode:
        nodes.emplace_back(field.bytes);
        has_graph = has_graph || nodes.back().has_graph;
        for (std::string_view input : nodes.back().inputs) ++use_counts[input];
        for (std::string_view output : nodes.back().outputs) {
          require(output.empty() || producers.emplace(output, nodes.size() - 1).second);
        }
        break;
      case kGraphInput: {
        const ValueInfo input(field.bytes);
        require(inputs.emplace(input.name, input.dtype).second || input.name.empty());
        input_ranks[input.name] = input.shape.size();
        break;
      }
      case kValueInfo: has_value_info = true; break;
      case kGraphOutput: {
        const std::string_view name = submessage(field.bytes, kValueName);
        ++use_counts[name];
        outputs.insert(name);
        break;
      }
      default: break;
    }
  }
  for (const auto& [name, dtype] : inputs) {
    constants.erase(name);  // a caller may override them
    require(producers.count(name) == 0);
  }
  for (const auto& [name, constant] : constants) require(producers.count(name) == 0);
}

bool Graph::has(std::string_view value) const {
  return constants.count(value) + use_counts.count(value) + producers.count(value) + inputs.count(value) > 0;
}

const Node* Graph::sole_producer(const Node* reader, size_t index, std::string_view op_type, size_t inputs,
                                 size_t outputs) const {
  if (reader == nullptr) return nullptr;
  const std::string_view value = reader->inputs[index];
  const auto found = producers.find(value), end = producers.end();
  if (value.empty() || found == end || use_counts.at(value) != 1) return nullptr;
  const Node& node = nodes[found->second];
  const bool fits =
      node.op_type == op_type && node.domain.empty() && node.inputs.size() == inputs && node.outputs.size() == outputs;
  return fits ? &node : nullptr;
}

const Constant* Graph::constant(std::string_view name, DType dtype) const {
  const auto found = constants.find(name);
  return found != constants.end() && found->second.dtype == dtype ? &found->second : nullptr;
}

std::string write_node(const Node& node, std::string_view domain, std::string_view type,
                       const std::vector<std::string_view>& inputs, const IntAttributes& ints,
                       const FloatAttributes& factors) {
  constexpr uint64_t kFloat = 1, kInt = 2;
  std::string result;
  for (std::string_view input : inputs) protobuf::write(result, kInput, input);
  for (std::string_view output : node.outputs) protobuf::write(result, kOutput, output);
  protobuf::write(result, kNodeName, node.name);
  protobuf::write(result, kOpType, type);
  for (const auto& [name, number] : ints) write_attribute(result, name, kAttributeInt, kInt, number);
  for (const auto& [name, factor] : factors) write_attribute(result, name, kAttributeFloat, kFloat, factor);
  protobuf::write(result, kNodeDomain, domain);
  std::string field;
  protobuf::write(field, kNode, result);
  return field;
}

std::string write_input(std::string_view name, uint64_t columns) {
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

OnnxModel::OnnxModel(std::string_view model) {
  std::set<std::string_view> imported;
  protobuf::Field field, part;
  for (protobuf::Reader reader(model); reader.next(field);) {
    if (field.number == kGraph) graph = field.bytes;
    if (field.number == kFunction) has_functions = true;
    if (field.number == kTraining) has_training = true;
    if (field.number != kOpsetImport) continue;
    const std::string_view domain = submessage(field.bytes, kOpsetDomain);
    if (!imported.insert(domain).second) throw std::runtime_error("it imports a domain twice");
    for (protobuf::Reader import(field.bytes); import.next(part);) {
      if (part.number != kOpsetVersion) continue;
      if (domain.empty()) opset = part.value;
      if (domain == "com.microsoft") microsoft = part.value;
    }
  }
}

std::string apply_changes(std::string_view graph, const Graph& parts, const NodeChanges& changes,
                          const std::vector<std::string>& inputs) {
  std::string result;
  auto node = parts.nodes.begin();
  protobuf::Field field;
  const auto is_read = [&parts](std::string_view constant) {
    const auto uses = parts.use_counts.find(constant);
    return parts.constants.count(constant) == 0 || (uses != parts.use_counts.end() && uses->second > 0);
  };
  for (protobuf::Reader reader(graph); reader.next(field);) {
    if (field.number == kInitializer && !is_read(submessage(field.bytes, kTensorName))) continue;
    auto change = changes.end();
    if (field.number == kNode) {
      if (!node->outputs.empty()) change = changes.find(node->outputs[0]);
      ++node;
    }
    result += change == changes.end() ? field.whole : change->second;
  }
  for (const std::string& input : inputs) protobuf::write(result, kGraphInput, input);
  return result;
}

std::string replace_graph(std::string_view model, const std::string& graph, std::string_view domain) {
  std::string result, opset;
  protobuf::Field field;
  for (protobuf::Reader reader(model); reader.next(field);) {
    if (field.number == kGraph) {
      protobuf::write(result, kGraph, graph);
    } else {
      result += field.whole;
    }
  }
  protobuf::write(opset, kOpsetDomain, domain);
  protobuf::write(opset, kOpsetVersion, uint64_t{1});
  protobuf::write(result, kOpsetImport, opset);
  return result;
}

}  // namespace blip2rt
