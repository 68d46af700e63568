// Validates protobuf messages against the schema of onnx.proto.
#include "graphs/onnx_schema.h"

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "graphs/protobuf.h"
#include "ort/utf8.h"

namespace blip2rt {
namespace {

enum class Type : uint8_t { kInt32, kInt64, kFloat, kDouble, kText, kDomain, kData, kMessage };
enum class Cardinality : uint8_t { kSingular, kOneof, kRepeated };  // kOneof: at most one such field per message

struct Message;

struct Rule {
  uint32_t number;
  Type type;
  Cardinality cardinality;
  const Message* message;  // for kMessage
};

struct Message {
  const char* name;
  const Rule* rules;
  size_t count;
};

constexpr Cardinality singular = Cardinality::kSingular, oneof = Cardinality::kOneof, repeated = Cardinality::kRepeated;

constexpr Rule int32(uint32_t number, Cardinality cardinality = singular) {
  return {number, Type::kInt32, cardinality, nullptr};
}
constexpr Rule int64(uint32_t number, Cardinality cardinality = singular) {
  return {number, Type::kInt64, cardinality, nullptr};
}
constexpr Rule float32(uint32_t number, Cardinality cardinality = singular) {
  return {number, Type::kFloat, cardinality, nullptr};
}
constexpr Rule float64(uint32_t number, Cardinality cardinality = singular) {
  return {number, Type::kDouble, cardinality, nullptr};
}
constexpr Rule text(uint32_t number, Cardinality cardinality = singular) {
  return {number, Type::kText, cardinality, nullptr};
}
constexpr Rule domain(uint32_t number) { return {number, Type::kDomain, singular, nullptr}; }
constexpr Rule data(uint32_t number, Cardinality cardinality = singular) {
  return {number, Type::kData, cardinality, nullptr};
}
constexpr Rule message(uint32_t number, const Message& of, Cardinality cardinality = singular) {
  return {number, Type::kMessage, cardinality, &of};
}

template <size_t N>
constexpr Message table(const char* name, const Rule (&rules)[N]) {
  static_assert(N <= 64, "a mask holds what was seen");
  return {name, rules, N};
}

extern const Message kGraph, kType;

const Rule kEntryRules[] = {text(1), text(2)};
const Message kEntry = table("StringStringEntryProto", kEntryRules);
const Rule kSegmentRules[] = {int64(1), int64(2)};
const Message kSegment = table("Segment", kSegmentRules);
const Rule kTensorRules[] = {int64(1, repeated),
                             int32(2),
                             message(3, kSegment),
                             float32(4, repeated),
                             int32(5, repeated),
                             data(6, repeated),
                             int64(7, repeated),
                             text(8),
                             data(9),
                             float64(10, repeated),
                             int64(11, repeated),
                             text(12),
                             message(13, kEntry, repeated),
                             int32(14),
                             message(16, kEntry, repeated)};
const Message kTensor = table("TensorProto", kTensorRules);
const Rule kSparseRules[] = {message(1, kTensor), message(2, kTensor), int64(3, repeated)};
const Message kSparse = table("SparseTensorProto", kSparseRules);

const Rule kDimensionRules[] = {int64(1, oneof), text(2, oneof), text(3)};
const Message kDimension = table("Dimension", kDimensionRules);
const Rule kShapeRules[] = {message(1, kDimension, repeated)};
const Message kShape = table("TensorShapeProto", kShapeRules);
const Rule kTensorTypeRules[] = {int32(1), message(2, kShape)};
const Message kTensorType = table("TypeProto.Tensor", kTensorTypeRules);
const Rule kElementsRules[] = {message(1, kType)};
const Message kElements = table("TypeProto.Sequence", kElementsRules);
const Rule kMapRules[] = {int32(1), message(2, kType)};
const Message kMap = table("TypeProto.Map", kMapRules);
const Rule kOpaqueRules[] = {text(1), text(2)};
const Message kOpaque = table("TypeProto.Opaque", kOpaqueRules);
const Rule kTypeRules[] = {
    message(1, kTensorType, oneof), message(4, kElements, oneof),   message(5, kMap, oneof),     text(6),
    message(7, kOpaque, oneof),     message(8, kTensorType, oneof), message(9, kElements, oneof)};
const Message kType = table("TypeProto", kTypeRules);
const Rule kValueRules[] = {text(1), message(2, kType), text(3), message(4, kEntry, repeated)};
const Message kValue = table("ValueInfoProto", kValueRules);

const Rule kAttributeRules[] = {text(1),
                                float32(2),
                                int64(3),
                                data(4),
                                message(5, kTensor),
                                message(6, kGraph),
                                float32(7, repeated),
                                int64(8, repeated),
                                data(9, repeated),
                                message(10, kTensor, repeated),
                                message(11, kGraph, repeated),
                                text(13),
                                message(14, kType),
                                message(15, kType, repeated),
                                int32(20),
                                text(21),
                                message(22, kSparse),
                                message(23, kSparse, repeated)};
const Message kAttribute = table("AttributeProto", kAttributeRules);

const Rule kIntListRules[] = {int64(1), int64(2, repeated)};
const Message kIntList = table("IntIntListEntryProto", kIntListRules);
const Rule kSimpleDimRules[] = {int64(1, oneof), text(2, oneof), int64(3)};
const Message kSimpleDim = table("SimpleShardedDimProto", kSimpleDimRules);
const Rule kShardedDimRules[] = {int64(1), message(2, kSimpleDim, repeated)};
const Message kShardedDim = table("ShardedDimProto", kShardedDimRules);
const Rule kShardingRules[] = {text(1), int64(2, repeated), message(3, kIntList, repeated),
                               message(4, kShardedDim, repeated)};
const Message kSharding = table("ShardingSpecProto", kShardingRules);
const Rule kNodeDeviceRules[] = {text(1), message(2, kSharding, repeated), int32(3)};
const Message kNodeDevice = table("NodeDeviceConfigurationProto", kNodeDeviceRules);
const Rule kDeviceRules[] = {text(1), int32(2), text(3, repeated)};
const Message kDevice = table("DeviceConfigurationProto", kDeviceRules);

constexpr uint32_t kOperatorType = 4, kOperatorDomain = 7;
const Rule kNodeRules[] = {text(1, repeated),
                           text(2, repeated),
                           text(3),
                           text(kOperatorType),
                           message(5, kAttribute, repeated),
                           text(6),
                           domain(kOperatorDomain),
                           text(8),
                           message(9, kEntry, repeated),
                           message(10, kNodeDevice, repeated)};
const Message kNode = table("NodeProto", kNodeRules);
const Rule kOpsetRules[] = {domain(1), int64(2)};
const Message kOpset = table("OperatorSetIdProto", kOpsetRules);
const Rule kAnnotationRules[] = {text(1), message(2, kEntry, repeated)};
const Message kAnnotation = table("TensorAnnotation", kAnnotationRules);
const Rule kGraphRules[] = {message(1, kNode, repeated),    text(2),
                            message(5, kTensor, repeated),  text(10),
                            message(11, kValue, repeated),  message(12, kValue, repeated),
                            message(13, kValue, repeated),  message(14, kAnnotation, repeated),
                            message(15, kSparse, repeated), message(16, kEntry, repeated)};
const Message kGraph = table("GraphProto", kGraphRules);
const Rule kFunctionRules[] = {text(1),
                               text(4, repeated),
                               text(5, repeated),
                               text(6, repeated),
                               message(7, kNode, repeated),
                               text(8),
                               message(9, kOpset, repeated),
                               domain(10),
                               message(11, kAttribute, repeated),
                               message(12, kValue, repeated),
                               text(13),
                               message(14, kEntry, repeated)};
const Message kFunction = table("FunctionProto", kFunctionRules);
const Rule kTrainingRules[] = {message(1, kGraph), message(2, kGraph), message(3, kEntry, repeated),
                               message(4, kEntry, repeated)};
const Message kTraining = table("TrainingInfoProto", kTrainingRules);
const Rule kModelRules[] = {int64(1),
                            text(2),
                            text(3),
                            text(4),
                            int64(5),
                            text(6),
                            message(7, kGraph),
                            message(8, kOpset, repeated),
                            message(14, kEntry, repeated),
                            message(20, kTraining, repeated),
                            message(25, kFunction, repeated),
                            message(26, kDevice, repeated)};
const Message kModel = table("ModelProto", kModelRules);

[[noreturn]] void fail(const Message& message, uint32_t number, const char* what) {
  throw std::runtime_error("field " + std::to_string(number) + " of " + message.name + " " + what);
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
  const bool number = rule.type <= Type::kDouble;
  if (number && rule.cardinality == repeated && field.wire == protobuf::kBytes)
    return check_packed(message, rule, field.bytes);
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
      validate(*rule.message, field.bytes, depth + 1, found);
      break;
  }
}

void validate(const Message& message, std::string_view bytes, int depth, ModelContents& found) {
  constexpr int kMaxDepth = 100;  // protobuf's own limit
  if (depth > kMaxDepth) throw std::runtime_error("its messages are nested deeper than 100");
  if (&message == &kTensor) found.tensors.push_back(bytes);
  Operator computed;
  uint64_t seen = 0;
  bool chosen = false;
  protobuf::Field field;
  for (protobuf::Reader reader(bytes); reader.next(field);) {
    for (size_t i = 0; i < message.count; ++i) {
      const Rule& rule = message.rules[i];
      if (rule.number != field.number) continue;
      check_field(message, rule, field, depth, found);
      if (rule.number == kOperatorType) computed.type = field.bytes;
      if (rule.number == kOperatorDomain) computed.domain = field.bytes;
      if (rule.cardinality != repeated && (seen >> i & 1) != 0) fail(message, rule.number, "is repeated");
      if (rule.cardinality == oneof && chosen) fail(message, rule.number, "excludes another field that is set");
      chosen = chosen || rule.cardinality == oneof;
      seen |= uint64_t{1} << i;
      break;
    }
  }
  if (&message == &kNode) found.operators.push_back(computed);
}

}  // namespace

ModelContents scan_model(std::string_view model) {
  ModelContents found;
  validate(kModel, model, 0, found);
  return found;
}

}  // namespace blip2rt
