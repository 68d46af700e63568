// The table of allowed operators, and its checks.
#include "graphs/allowed_operators.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "base/parse.h"
#include "base/utf8.h"

namespace blip2rt {
namespace {

constexpr size_t kMaxParts = 100'000;  // "N" and "*" in the table

// OPERATOR INPUTS OUTPUTS [ATTRIBUTE=VALUES...]
// INPUTS   separated by commas. x: any value; -: none; [VALUES]: a constant list of integers. "?" after one: may be
//          missing at the end; "~": may be missing or unnamed; "*": may be repeated.
// OUTPUTS  a number, a range, or "N" for any number; "?" after it allows unnamed values but for the first.
// VALUES   numbers, ranges or texts, separated by "|"; in brackets a list of them; "float" is any finite number. "!"
//          after an attribute's name requires it.
constexpr char kOperators[] = R"(
Abs x 1
Add x,x 1
And x,x 1
AveragePool x 1 auto_pad=NOTSET ceil_mode=0|1 count_include_pad=0|1 dilations=[1] kernel_shape!=[1..1024]
  pads=[0..1024] strides=[1..1024]
Cast x 1 saturate=0|1 to=1..16
Clip x,x~,x~ 1
Concat x* 1 axis=-8..7
Conv x,x,x? 1 auto_pad=NOTSET dilations=[1..1024] group=1..65536 kernel_shape!=[1..1024] pads=[0..1024]
  strides=[1..1024]
Cos x 1
DequantizeLinear x,x,x? 1 axis=-8..7 block_size=0|16..65536
Div x,x 1
Equal x,x 1
Erf x 1
Exp x 1
Expand x,x 1
Floor x 1
Gather x,x 1 axis=-8..7
GatherND x,x 1 batch_dims=0|1
Gelu x 1 approximate=none|tanh
Gemm x,x,x? 1 alpha=float beta=float transA=0|1 transB=0|1
GlobalAveragePool x 1
Greater x,x 1
GreaterOrEqual x,x 1
HardSigmoid x 1 alpha=float beta=float
HardSwish x 1
Identity x 1
LayerNormalization x,x,x? 1 axis=-8..7 epsilon=float stash_type=1
Less x,x 1
LessOrEqual x,x 1
Log x 1
MatMul x,x 1
Max x,x 1
MaxPool x 1 auto_pad=NOTSET ceil_mode=0|1 dilations=[1..1024] kernel_shape!=[1..1024] pads=[0..1024] storage_order=0
  strides=[1..1024]
Min x,x 1
Mul x,x 1
Neg x 1
Not x 1
Or x,x 1
Pad x,[0..7] 1 mode!=constant
Pow x,x 1
QuantizeLinear x,x,x? 1 axis=-8..7 block_size=0
Range x,x,x 1
Reciprocal x 1
ReduceL2 x,[-8..7] 1 keepdims=0|1 noop_with_empty_axes=0
ReduceMean x,[-8..7]? 1 axes=[-8..7] keepdims=0|1 noop_with_empty_axes=0
ReduceSum x,[-8..7] 1 keepdims=0|1 noop_with_empty_axes=0
Relu x 1
Reshape x,x 1 allowzero=0|1
Shape x 1 end=-8..8 start=-8..8
Sigmoid x 1
SimplifiedLayerNormalization x,x 1 axis=-8..7 epsilon=float stash_type=1
Sin x 1
Slice x,x,x,x?,x? 1
Softmax x 1 axis=-8..7
Softplus x 1
Split x,x? 1-N axis=-8..7 num_outputs=1..65536
Sqrt x 1
Squeeze x,[-8..7]? 1
Sub x,x 1
Tanh x 1
Tile x,[1..16] 1
Transpose x 1 perm=[0..7]
Unsqueeze x,[-8..7] 1
Where x,x,x 1
com.microsoft.DynamicQuantizeMatMul x,x,x,-~,x~ 1
com.microsoft.GatherBlockQuantized x,x,x,x 1 bits=4|8 block_size!=16..65536 gather_axis=0 quantize_axis!=1
com.microsoft.GroupQueryAttention x,x~,x~,x,x,x,x,x~,x~,-~,x~ 3 do_rotary=0|1 kv_num_heads!=1..65536
  local_window_size=-1..2147483647 num_heads!=1..65536 scale=float softcap=float
com.microsoft.MatMulNBits x,x,x,x 1 K!=1..2147483647 N!=1..2147483647 accuracy_level=0..4 bits=4|8 block_size!=16..65536
com.microsoft.SkipSimplifiedLayerNormalization x,x,x 4 epsilon!=float
)";

// Operators that only graphs for TensorRT have. ONNX Runtime aborts for some forms of them.
constexpr char kTensorRtOperators[] = R"(
Pad x,[0..127] 1 mode=constant
ReduceLogSumExp x,[-8..7]? 1 keepdims=0|1 noop_with_empty_axes=0
Tile x,x 1
TopK x,x 2 axis=-8..7 largest=0|1 sorted=0|1
)";

enum class Type : uint64_t { kFloat = 1, kInt = 2, kText = 3, kInts = 7 };  // AttributeProto.AttributeType

struct Values {
  Type type = Type::kInt;
  std::vector<std::pair<int64_t, int64_t>> ranges;
  std::set<std::string, std::less<>> texts;
  bool is_required = false;

  bool contains(int64_t number) const {
    return std::any_of(ranges.begin(), ranges.end(),
                       [=](const auto& range) { return range.first <= number && number <= range.second; });
  }
};

struct Input {
  bool is_absent = false, may_be_missing = false, may_be_unnamed = false, is_list = false;
  Values values;  // of a list
};

struct Signature {
  std::vector<Input> inputs;
  bool repeats = false;  // the last input
  size_t min_outputs = 0, max_outputs = 0;
  bool has_unnamed_outputs = false;
  std::map<std::string, Values, std::less<>> attributes;
};

using Signatures = std::map<std::string, Signature, std::less<>>;

// Removes `mark` from the end of a text. Returns whether it was there.
bool cut(std::string& text, char mark) {
  const bool found = text.back() == mark;
  if (found) text.pop_back();
  return found;
}

Values parse_values(std::string text) {
  Values values;
  if (text == "float") values.type = Type::kFloat;
  if (values.type == Type::kFloat) return values;
  const bool is_list = cut(text, ']');
  if (is_list) text.erase(0, 1);
  for (const std::string_view each : parts_of(text, '|')) {
    const std::string part(each);
    if (part.find_first_of("0123456789") == std::string::npos) {
      values.type = Type::kText;
      values.texts.insert(part);
      continue;
    }
    const size_t dots = part.find("..");
    values.ranges.emplace_back(std::stoll(part), std::stoll(dots == std::string::npos ? part : part.substr(dots + 2)));
  }
  if (is_list) values.type = Type::kInts;
  return values;
}

Input parse_input(std::string text) {
  Input input;
  input.may_be_unnamed = cut(text, '~');
  input.may_be_missing = input.may_be_unnamed || cut(text, '?');
  input.is_absent = text == "-";
  input.is_list = text.front() == '[';
  if (input.is_list) input.values = parse_values(text);
  return input;
}

Signature parse_signature(std::string inputs, std::string outputs) {
  Signature result;
  result.repeats = cut(inputs, '*');
  for (const std::string_view input : parts_of(inputs, ',')) result.inputs.push_back(parse_input(std::string(input)));
  result.has_unnamed_outputs = cut(outputs, '?');
  result.min_outputs = std::stoul(outputs);
  result.max_outputs = outputs.back() == 'N' ? kMaxParts : static_cast<size_t>(outputs.back() - '0');
  return result;
}

Signatures parse(const char* table) {
  Signatures result;
  Signature* signature = nullptr;
  for (const std::string_view line : parts_of(table, '\n')) {
    const std::vector<std::string_view> words = parts_of(line, ' ');
    const size_t count = line.front() == ' ' ? 0 : 3;  // words before the attributes
    if (count > 0) {
      signature = &(result[std::string(words[0])] = parse_signature(std::string(words[1]), std::string(words[2])));
    }
    for (size_t i = count; i < words.size(); ++i) {
      const size_t equals = words[i].find('=');
      Values values = parse_values(std::string(words[i].substr(equals + 1)));
      std::string title(words[i].substr(0, equals));
      values.is_required = cut(title, '!');
      signature->attributes[title] = values;
    }
  }
  return result;
}

std::string counted(size_t count, const char* what) {
  return "it has " + std::to_string(count) + " " + what + (count == 1 ? "" : "s");
}

void check_list(const Graph& graph, std::string_view name, const Values& values, const std::string& title) {
  const Constant* list = graph.constant(name, DType::kInt64);
  if (list == nullptr || list->shape.size() != 1 || list->raw.size() != list->shape[0] * sizeof(int64_t)) {
    throw std::runtime_error(title + " is not a constant list of integers");
  }
  for (int64_t number : list->values<int64_t>(list->shape[0])) {
    if (!values.contains(number)) throw std::runtime_error(title + " has " + std::to_string(number));
  }
}

void check_inputs(const Graph& graph, const Node& node, const Signature& allowed) {
  const std::vector<Input>& inputs = allowed.inputs;
  const auto is_required = [](const Input& input) { return !input.may_be_missing; };
  const auto count = static_cast<size_t>(std::count_if(inputs.begin(), inputs.end(), is_required));
  if (node.inputs.size() < count || node.inputs.size() > (allowed.repeats ? kMaxParts : inputs.size())) {
    throw std::runtime_error(counted(node.inputs.size(), "input"));
  }
  for (size_t i = 0; i < node.inputs.size(); ++i) {
    const Input& input = inputs[std::min(i, inputs.size() - 1)];
    const std::string title = "input " + std::to_string(i);
    if (!node.inputs[i].empty()) {
      if (input.is_absent) throw std::runtime_error("it has " + title);
      if (input.is_list) check_list(graph, node.inputs[i], input.values, title);
    } else if (!input.may_be_unnamed) {
      throw std::runtime_error(title + " has no name");
    }
  }
}

void check_outputs(const Node& node, const Signature& allowed) {
  const size_t count = node.outputs.size();
  if (count < allowed.min_outputs || count > allowed.max_outputs) throw std::runtime_error(counted(count, "output"));
  for (size_t i = 0; i < count; ++i) {
    if (node.outputs[i].empty() && (i == 0 || !allowed.has_unnamed_outputs)) {
      throw std::runtime_error("output " + std::to_string(i) + " has no name");
    }
  }
}

void check_attribute(const Node& node, std::string_view name, uint64_t type, const Values& values) {
  const std::string title = "its attribute " + quoted(name);
  if (type != static_cast<uint64_t>(values.type)) throw std::runtime_error(title + " has another type");
  const auto check_number = [&](int64_t number) {
    if (!values.contains(number)) throw std::runtime_error(title + " is " + std::to_string(number));
  };
  if (values.type == Type::kInt) check_number(node.ints.at(name));
  if (values.type == Type::kInts) {
    for (uint64_t number : node.lists.at(name)) check_number(static_cast<int64_t>(number));
  }
  if (values.type == Type::kFloat && !std::isfinite(node.floats.at(name)))
    throw std::runtime_error(title + " is not finite");
  if (values.type == Type::kText && values.texts.count(node.texts.at(name)) == 0) {
    throw std::runtime_error(title + " is " + quoted(node.texts.at(name)));
  }
}

}  // namespace

void check_allowed(const Graph& graph, const Node& node, bool for_tensorrt) {
  static const Signatures general = parse(kOperators), tensorrt = parse(kTensorRtOperators);
  if (node.has_graph) throw std::runtime_error("it has a subgraph");
  const std::string name = (node.domain.empty() ? "" : std::string(node.domain) + ".") + std::string(node.op_type);
  const Signatures& known = for_tensorrt && tensorrt.count(name) != 0 ? tensorrt : general;
  const auto found = known.find(name);
  if (found == known.end()) throw std::runtime_error("exports do not use this operator");
  const Signature& allowed = found->second;
  check_inputs(graph, node, allowed);
  check_outputs(node, allowed);
  for (const auto& [attribute, type] : node.attribute_types) {
    const auto values = allowed.attributes.find(attribute);
    if (values == allowed.attributes.end()) throw std::runtime_error("it has the attribute " + quoted(attribute));
    check_attribute(node, attribute, type, values->second);
  }
  for (const auto& [attribute, values] : allowed.attributes) {
    if (values.is_required && node.attribute_types.count(attribute) == 0) {
      throw std::runtime_error("it has no attribute " + quoted(attribute));
    }
  }
}

}  // namespace blip2rt
