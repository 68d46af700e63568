// Validates protobuf messages against the schema of onnx.proto.
#include "graphs/onnx_schema.h"

#include <algorithm>
#include <cassert>
#include <cstdint>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/parse.h"
#include "base/utf8.h"
#include "graphs/protobuf.h"

namespace blip2rt {
namespace {

enum class Type : uint8_t { kInt32, kInt64, kFloat, kDouble, kText, kDomain, kData, kMessage };
enum class Cardinality : uint8_t { kSingular, kOneof, kRepeated };  // kOneof: at most one such field per message

// The messages of onnx.proto: "NUMBER TYPE" per field, with `*` for repeated fields and `?` for those of a oneof. A
// domain is text that scan_model collects; data is not checked.
struct MessageSchema {
  const char *name, *fields;
};
constexpr MessageSchema kSchema[] = {
    {"StringStringEntryProto", "1 text, 2 text"},
    {"Segment", "1 int64, 2 int64"},
    {"TensorProto",
     "1 int64*, 2 int32, 3 Segment, 4 float*, 5 int32*, 6 data*, 7 int64*, 8 text, 9 data, 10 double*, "
     "11 int64*, 12 text, 13 StringStringEntryProto*, 14 int32, 16 StringStringEntryProto*"},
    {"SparseTensorProto", "1 TensorProto, 2 TensorProto, 3 int64*"},
    {"Dimension", "1 int64?, 2 text?, 3 text"},
    {"TensorShapeProto", "1 Dimension*"},
    {"TypeProto.Tensor", "1 int32, 2 TensorShapeProto"},
    {"TypeProto.Sequence", "1 TypeProto"},
    {"TypeProto.Map", "1 int32, 2 TypeProto"},
    {"TypeProto.Opaque", "1 text, 2 text"},
    {"TypeProto",
     "1 TypeProto.Tensor?, 4 TypeProto.Sequence?, 5 TypeProto.Map?, 6 text, 7 TypeProto.Opaque?, "
     "8 TypeProto.Tensor?, 9 TypeProto.Sequence?"},
    {"ValueInfoProto", "1 text, 2 TypeProto, 3 text, 4 StringStringEntryProto*"},
    {"AttributeProto",
     "1 text, 2 float, 3 int64, 4 data, 5 TensorProto, 6 GraphProto, 7 float*, 8 int64*, 9 data*, "
     "10 TensorProto*, 11 GraphProto*, 13 text, 14 TypeProto, 15 TypeProto*, 20 int32, 21 text, "
     "22 SparseTensorProto, 23 SparseTensorProto*"},
    {"IntIntListEntryProto", "1 int64, 2 int64*"},
    {"SimpleShardedDimProto", "1 int64?, 2 text?, 3 int64"},
    {"ShardedDimProto", "1 int64, 2 SimpleShardedDimProto*"},
    {"ShardingSpecProto", "1 text, 2 int64*, 3 IntIntListEntryProto*, 4 ShardedDimProto*"},
    {"NodeDeviceConfigurationProto", "1 text, 2 ShardingSpecProto*, 3 int32"},
    {"DeviceConfigurationProto", "1 text, 2 int32, 3 text*"},
    {"NodeProto",
     "1 text*, 2 text*, 3 text, 4 text, 5 AttributeProto*, 6 text, 7 domain, 8 text, 9 StringStringEntryProto*, "
     "10 NodeDeviceConfigurationProto*"},
    {"OperatorSetIdProto", "1 domain, 2 int64"},
    {"TensorAnnotation", "1 text, 2 StringStringEntryProto*"},
    {"GraphProto",
     "1 NodeProto*, 2 text, 5 TensorProto*, 10 text, 11 ValueInfoProto*, 12 ValueInfoProto*, 13 ValueInfoProto*, "
     "14 TensorAnnotation*, 15 SparseTensorProto*, 16 StringStringEntryProto*"},
    {"FunctionProto",
     "1 text, 4 text*, 5 text*, 6 text*, 7 NodeProto*, 8 text, 9 OperatorSetIdProto*, 10 domain, "
     "11 AttributeProto*, 12 ValueInfoProto*, 13 text, 14 StringStringEntryProto*"},
    {"TrainingInfoProto", "1 GraphProto, 2 GraphProto, 3 StringStringEntryProto*, 4 StringStringEntryProto*"},
    {"ModelProto",
     "1 int64, 2 text, 3 text, 4 text, 5 int64, 6 text, 7 GraphProto, 8 OperatorSetIdProto*, "
     "14 StringStringEntryProto*, 20 TrainingInfoProto*, 25 FunctionProto*, 26 DeviceConfigurationProto*"},
};

struct Rule {
  uint32_t number;
  Type type;
  Cardinality cardinality;
  size_t message;  // index in kSchema, for kMessage
};

struct Message {
  std::string_view name;
  std::vector<Rule> rules;
};

size_t message_index(std::string_view name) {
  size_t index = 0;
  while (kSchema[index].name != name) ++index;
  return index;
}

Rule parse_rule(uint32_t number, std::string_view type) {
  constexpr std::string_view kTypes[] = {"int32", "int64", "float", "double", "text", "domain", "data"};
  Rule rule = {number, Type::kMessage, Cardinality::kSingular, 0};
  if (type.back() == '*' || type.back() == '?') {
    rule.cardinality = type.back() == '*' ? Cardinality::kRepeated : Cardinality::kOneof;
    type.remove_suffix(1);
  }
  const auto found = std::find(std::begin(kTypes), std::end(kTypes), type);
  rule.type = static_cast<Type>(found - std::begin(kTypes));
  if (rule.type == Type::kMessage) rule.message = message_index(type);
  return rule;
}

const std::vector<Message>& messages() {
  static const std::vector<Message> parsed = [] {
    std::vector<Message> result;
    for (const MessageSchema& schema : kSchema) {
      Message& message = result.emplace_back();
      message.name = schema.name;
      for (const std::string_view field : parts_of(schema.fields, ',')) {
        const std::vector<std::string_view> words = parts_of(field, ' ');
        message.rules.push_back(parse_rule(static_cast<uint32_t>(std::stoul(std::string(words[0]))), words[1]));
      }
      assert(message.rules.size() <= 64);  // validate() keeps a mask of them
    }
    return result;
  }();
  return parsed;
}

[[noreturn]] void fail(const Message& message, uint32_t number, const char* what) {
  throw std::runtime_error("field " + std::to_string(number) + " of " + std::string(message.name) + " " + what);
}

bool is_int32(uint64_t value) {
  const auto number = static_cast<int64_t>(value);
  return number >= std::numeric_limits<int32_t>::min() && number <= std::numeric_limits<int32_t>::max();
}

void check_packed(const Message& message, const Rule& rule, std::string_view bytes) {
  const size_t size = rule.type == Type::kFloat ? 4 : rule.type == Type::kDouble ? 8 : 0;
  if (size != 0) {
    if (bytes.size() % size != 0) fail(message, rule.number, "is truncated within a number");
    return;
  }
  protobuf::each_packed(bytes, [&](uint64_t number) {
    if (rule.type == Type::kInt32 && !is_int32(number)) fail(message, rule.number, "has a value of more than 32 bits");
  });
}

void validate(const Message& message, std::string_view bytes, int depth, ModelContents& found);

void check_field(const Message& message, const Rule& rule, const protobuf::Field& field, int depth,
                 ModelContents& found) {
  const auto require = [&](protobuf::Wire wire) {
    if (field.wire != wire) fail(message, rule.number, "has the wrong wire type");
  };
  const bool may_be_packed = rule.type <= Type::kDouble && rule.cardinality == Cardinality::kRepeated;
  if (may_be_packed && field.wire == protobuf::kBytes) return check_packed(message, rule, field.bytes);
  switch (rule.type) {
    case Type::kInt32:
    case Type::kInt64:
      require(protobuf::kVarint);
      if (rule.type == Type::kInt32 && !is_int32(field.value)) {
        fail(message, rule.number, "has a value of more than 32 bits");
      }
      break;
    case Type::kFloat: require(protobuf::kFixed32); break;
    case Type::kDouble: require(protobuf::kFixed64); break;
    case Type::kText:
    case Type::kDomain:
      require(protobuf::kBytes);
      if (!is_utf8(field.bytes)) fail(message, rule.number, "is not UTF-8");
      if (rule.type == Type::kDomain) found.domains.push_back(field.bytes);
      break;
    case Type::kData: require(protobuf::kBytes); break;
    case Type::kMessage:
      require(protobuf::kBytes);
      validate(messages()[rule.message], field.bytes, depth + 1, found);
      break;
  }
}

void validate(const Message& message, std::string_view bytes, int depth, ModelContents& found) {
  constexpr int kMaxDepth = 100;  // protobuf's own limit
  if (depth > kMaxDepth) throw std::runtime_error("its messages are nested deeper than 100");
  if (message.name == "TensorProto") found.tensors.push_back(bytes);
  uint64_t seen = 0;
  bool chosen = false;
  protobuf::Field field;
  for (protobuf::Reader reader(bytes); reader.next(field);) {
    for (size_t i = 0; i < message.rules.size(); ++i) {
      const Rule& rule = message.rules[i];
      if (rule.number != field.number) continue;
      check_field(message, rule, field, depth, found);
      if (rule.cardinality != Cardinality::kRepeated && (seen >> i & 1) != 0) fail(message, rule.number, "is repeated");
      if (rule.cardinality == Cardinality::kOneof && chosen)
        fail(message, rule.number, "excludes another field that is set");
      chosen = chosen || rule.cardinality == Cardinality::kOneof;
      seen |= uint64_t{1} << i;
      break;
    }
  }
}

}  // namespace

ModelContents scan_model(std::string_view model) {
  ModelContents found;
  validate(messages()[message_index("ModelProto")], model, 0, found);
  return found;
}

}  // namespace blip2rt
