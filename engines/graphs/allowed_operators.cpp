// The table of allowed operators, and its checks.
#include "graphs/allowed_operators.h"

#include <cmath>
#include <cstdint>
#include <map>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/utf8.h"

namespace blip2rt {
namespace {

constexpr size_t kMaxParts = 100'000;  // "N" in the table

// OPERATOR INPUTS OUTPUTS [ATTRIBUTE...]. A count is a number, a range, or "N" for any number; "?" after it allows
// unnamed values but for the first.
constexpr char kOperators[] = R"(
Abs 1 1
Add 2 1
And 2 1
AveragePool 1 1 auto_pad ceil_mode count_include_pad dilations kernel_shape pads strides
Cast 1 1 saturate to
Clip 1-3? 1
Concat 1-N 1 axis
Conv 2-3 1 auto_pad dilations group kernel_shape pads strides
Cos 1 1
DequantizeLinear 2-3 1 axis block_size
Div 2 1
Equal 2 1
Erf 1 1
Exp 1 1
Expand 2 1
Floor 1 1
Gather 2 1 axis
GatherND 2 1 batch_dims
Gelu 1 1 approximate
Gemm 2-3 1 alpha beta transA transB
GlobalAveragePool 1 1
Greater 2 1
GreaterOrEqual 2 1
HardSigmoid 1 1 alpha beta
HardSwish 1 1
Identity 1 1
LayerNormalization 2-3 1 axis epsilon stash_type
Less 2 1
LessOrEqual 2 1
Log 1 1
MatMul 2 1
Max 2 1
MaxPool 1 1 auto_pad ceil_mode dilations kernel_shape pads storage_order strides
Min 2 1
Mul 2 1
Neg 1 1
Not 1 1
Or 2 1
Pow 2 1
QuantizeLinear 2-3 1 axis block_size
Range 3 1
Reciprocal 1 1
ReduceL2 2 1 keepdims noop_with_empty_axes
ReduceMean 1-2 1 axes keepdims noop_with_empty_axes
ReduceSum 2 1 keepdims noop_with_empty_axes
Relu 1 1
Reshape 2 1 allowzero
Shape 1 1 end start
Sigmoid 1 1
SimplifiedLayerNormalization 2 1 axis epsilon stash_type
Sin 1 1
Slice 3-5 1
Softmax 1 1 axis
Softplus 1 1
Split 1-2 1-N axis num_outputs
Sqrt 1 1
Squeeze 1-2 1
Sub 2 1
Tanh 1 1
Transpose 1 1 perm
Unsqueeze 2 1
Where 3 1
com.microsoft.DynamicQuantizeMatMul 3-5? 1
com.microsoft.GatherBlockQuantized 3-4 1 bits block_size gather_axis quantize_axis
com.microsoft.GroupQueryAttention 7-11? 3 do_rotary kv_num_heads local_window_size num_heads scale softcap
com.microsoft.MatMulNBits 3-6? 1 K N accuracy_level bits block_size
com.microsoft.SkipSimplifiedLayerNormalization 3-4? 1-4? epsilon
)";

// Operators that only graphs for TensorRT have. ONNX Runtime aborts for some forms of them.
constexpr char kTensorRtOperators[] = R"(
Attention 3-7? 1 scale
ReduceLogSumExp 1-2 1 keepdims noop_with_empty_axes
TensorScatter 3 1 axis
Tile 2 1
TopK 2 2 axis largest sorted
)";

// ATTRIBUTE TYPE, and for integers and lists of them the lowest and highest value, for text the values.
constexpr char kAttributes[] = R"(
K int 1 2147483647
N int 1 2147483647
accuracy_level int 0 4
allowzero int 0 1
alpha float
approximate text none tanh
auto_pad text NOTSET
axes ints -8 7
axis int -8 7
batch_dims int 0 1
beta float
bits int 2 8
block_size int 0 65536
ceil_mode int 0 1
count_include_pad int 0 1
dilations ints 1 1024
do_rotary int 0 1
end int -8 8
epsilon float
gather_axis int -8 7
group int 1 65536
keepdims int 0 1
kernel_shape ints 1 1024
kv_num_heads int 1 65536
largest int 0 1
local_window_size int -1 2147483647
noop_with_empty_axes int 0 0
num_heads int 1 65536
num_outputs int 1 65536
pads ints 0 1024
perm ints 0 7
quantize_axis int -8 7
saturate int 0 1
scale float
softcap float
sorted int 0 1
start int -8 8
stash_type int 1 1
storage_order int 0 0
strides ints 1 1024
to int 1 16
transA int 0 1
transB int 0 1
)";

enum class Type : uint64_t { kFloat = 1, kInt = 2, kText = 3, kInts = 7 };  // AttributeProto.AttributeType

struct Count {
  size_t low = 0, high = 0;
  bool may_be_unnamed = false;
};

struct Signature {
  Count inputs, outputs;
  std::set<std::string> attributes;
};

struct Values {
  Type type;
  int64_t low = 0, high = 0;
  std::set<std::string, std::less<>> texts;
};

Count parse_count(std::string text) {
  Count count;
  count.may_be_unnamed = text.back() == '?';
  if (count.may_be_unnamed) text.pop_back();
  const size_t dash = text.find('-');
  const auto number = [](const std::string& digits) { return digits == "N" ? kMaxParts : std::stoul(digits); };
  count.high = number(dash == std::string::npos ? text : text.substr(dash + 1));
  count.low = text == "N" ? 1 : number(text.substr(0, dash));
  return count;
}

using Signatures = std::map<std::string, Signature, std::less<>>;

const Signatures& signatures(bool for_tensorrt) {
  static const auto parse = [](const char* table) {
    Signatures result;
    std::istringstream lines(table);
    for (std::string line; std::getline(lines, line);) {
      std::istringstream words(line);
      std::string name, inputs, outputs, attribute;
      if (!(words >> name >> inputs >> outputs)) continue;
      Signature& one = result[name];
      one.inputs = parse_count(inputs);
      one.outputs = parse_count(outputs);
      while (words >> attribute) one.attributes.insert(attribute);
    }
    return result;
  };
  static const Signatures general = parse(kOperators), tensorrt = parse(kTensorRtOperators);
  return for_tensorrt ? tensorrt : general;
}

const std::map<std::string, Values, std::less<>>& attributes() {
  static const auto parsed = [] {
    const std::map<std::string, Type> types = {
        {"float", Type::kFloat}, {"int", Type::kInt}, {"ints", Type::kInts}, {"text", Type::kText}};
    std::map<std::string, Values, std::less<>> result;
    std::istringstream lines(kAttributes);
    for (std::string line; std::getline(lines, line);) {
      std::istringstream words(line);
      std::string name, type, text;
      if (!(words >> name >> type)) continue;
      Values& one = result[name];
      one.type = types.at(type);
      if (one.type == Type::kInt || one.type == Type::kInts) words >> one.low >> one.high;
      while (words >> text) one.texts.insert(text);
    }
    return result;
  }();
  return parsed;
}

std::string counted(size_t count, const char* what) {
  return "it has " + std::to_string(count) + " " + what + (count == 1 ? "" : "s");
}

void check_values(const std::vector<std::string_view>& values, const Count& count, const char* what) {
  if (values.size() < count.low || values.size() > count.high) throw std::runtime_error(counted(values.size(), what));
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i].empty() && (i == 0 || !count.may_be_unnamed)) {
      throw std::runtime_error(std::string(what) + " " + std::to_string(i) + " has no name");
    }
  }
}

void check_attribute(const Node& node, std::string_view name, uint64_t type) {
  const std::string title = "its attribute " + quoted(name);
  const Values& values = attributes().find(name)->second;
  if (type != static_cast<uint64_t>(values.type)) throw std::runtime_error(title + " has another type");
  const auto check_number = [&](int64_t number) {
    if (number < values.low || number > values.high) throw std::runtime_error(title + " is " + std::to_string(number));
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

void check_allowed(const Node& node, bool for_tensorrt) {
  if (node.has_graph) throw std::runtime_error("it has a subgraph");
  const std::string name = (node.domain.empty() ? "" : std::string(node.domain) + ".") + std::string(node.op_type);
  const Signatures& special = signatures(true);
  const bool is_special = for_tensorrt && special.count(name) != 0;
  const Signatures& known = signatures(is_special);
  const auto found = known.find(name);
  if (found == known.end()) throw std::runtime_error("exports do not use this operator");
  const Signature& allowed = found->second;
  check_values(node.inputs, allowed.inputs, "input");
  check_values(node.outputs, allowed.outputs, "output");
  for (const auto& [attribute, type] : node.attribute_types) {
    if (allowed.attributes.count(std::string(attribute)) == 0) {
      throw std::runtime_error("it has the attribute " + quoted(attribute));
    }
    check_attribute(node, attribute, type);
  }
}

}  // namespace blip2rt
