// Finds chains of elementwise steps after products: Add of a bias, an activation, Mul, Add of a residual.
#include "executor/fuse.h"

#include <algorithm>
#include <utility>

#include "ops/domain.h"
#include "ops/matmul_op.h"

namespace blip2rt {
namespace {

// A product and what follows it.
struct Chain {
  std::vector<size_t> steps;  // in the order of the graph
  size_t value;               // that the chain has computed so far
  Ending ending;
};

class Fuser {
 public:
  Fuser(PlannedGraph& graph, const std::vector<const Node*>& nodes)
      : graph_(graph), nodes_(nodes), readers_(graph.constants.size()), is_output_(graph.constants.size()) {
    for (size_t i = 0; i < graph.steps.size(); ++i) {
      for (const size_t value : graph.steps[i].inputs) {
        if (value != kNoValue) readers_[value].push_back(i);
      }
    }
    for (const size_t value : graph.output_values) is_output_[value] = true;
  }

  void run() {
    std::vector<Chain> chains;
    for (size_t i = 0; i < nodes_.size(); ++i) {
      Chain chain = {{i}, made_by(i), {width_of(i)}};
      if (chain.ending.width == 0) continue;
      add_bias(chain);
      add_activation(chain);
      chain.ending.factor = add_operand(chain, "Mul");
      chain.ending.residual = add_operand(chain, "Add");
      if (chain.steps.size() > 1) chains.push_back(std::move(chain));
    }
    order(chains);
  }

 private:
  bool is(size_t step, std::string_view type) const {
    return nodes_[step]->domain.empty() && nodes_[step]->op_type == type;
  }

  // Returns the only value that a step computes, or kNoValue.
  size_t made_by(size_t step) const {
    const std::vector<size_t>& outputs = graph_.steps[step].outputs;
    return outputs.size() == 1 ? outputs[0] : kNoValue;
  }

  // Returns the steps that read a value, none if it is an output of the graph.
  const std::vector<size_t>& readers_of(size_t value) const {
    static const std::vector<size_t> kNone;
    return value == kNoValue || is_output_[value] ? kNone : readers_[value];
  }

  // Returns the columns of a product with a constant matrix, 0 for other steps.
  size_t width_of(size_t step) const {
    const Node& node = *nodes_[step];
    const std::vector<size_t>& inputs = graph_.steps[step].inputs;
    if (inputs.empty() || inputs[0] == kNoValue) return 0;
    const bool quantized = (node.domain == kDomain && (node.op_type == kMatMulInt4 || node.op_type == kMatMulInt8)) ||
                           (node.domain == "com.microsoft" && node.op_type == "MatMulNBits");
    if (quantized) return static_cast<size_t>(std::max<int64_t>(0, node.number("N", 0)));
    if (!is(step, "MatMul") || inputs.size() != 2 || inputs[1] == kNoValue) return 0;
    const TensorView& matrix = graph_.constants[inputs[1]];
    return matrix.dtype == DType::kFloat32 && matrix.rank == 2 ? matrix.size(1) : 0;
  }

  // Returns the only step that reads the chain's value, if it has this type; otherwise kNoValue.
  size_t only_reader(const Chain& chain, std::string_view type) const {
    const std::vector<size_t>& readers = readers_of(chain.value);
    return readers.size() == 1 && is(readers[0], type) ? readers[0] : kNoValue;
  }

  // Returns the operand of a step with two inputs that is not `value`.
  size_t other(size_t step, size_t value) const {
    const std::vector<size_t>& inputs = graph_.steps[step].inputs;
    return inputs.size() != 2 ? kNoValue : inputs[0] == value ? inputs[1] : inputs[1] == value ? inputs[0] : kNoValue;
  }

  const TensorView& constant(size_t value) const {
    static const TensorView kNone;
    return value == kNoValue ? kNone : graph_.constants[value];
  }

  void append(Chain& chain, std::initializer_list<size_t> steps) {
    chain.steps.insert(chain.steps.end(), steps);
    chain.value = made_by(chain.steps.back());
  }

  void add_bias(Chain& chain) {
    const size_t add = only_reader(chain, "Add");
    if (add == kNoValue) return;
    const size_t bias = other(add, chain.value);
    const TensorView& vector = constant(bias);
    if (vector.dtype != DType::kFloat32 || vector.rank != 1 || vector.size(0) != chain.ending.width) return;
    chain.ending.bias = bias;
    append(chain, {add});
  }

  // Adds x * sigmoid(beta * x), Gelu or Relu.
  void add_activation(Chain& chain) {
    for (const std::string_view type : {"Gelu", "Relu"}) {
      const size_t step = only_reader(chain, type);
      if (step == kNoValue) continue;
      const auto form = nodes_[step]->texts.find("approximate");
      const bool tanh = form != nodes_[step]->texts.end() && form->second == "tanh";
      chain.ending.activation = type == "Relu" ? Activation::kRelu : tanh ? Activation::kGeluTanh : Activation::kGelu;
      return append(chain, {step});
    }
    const std::vector<size_t>& readers = readers_of(chain.value);
    if (readers.size() != 2) return;
    size_t inner = readers[0], scaled = kNoValue;
    Chain branch = chain;
    if (is(inner, "Mul")) {
      const TensorView& factor = constant(other(inner, chain.value));
      if (factor.dtype != DType::kFloat32 || factor.rank > 1 || factor.count() != 1) return;
      branch.ending.beta = *factor.as<float>();
      scaled = inner;
      branch.value = made_by(scaled);
      inner = only_reader(branch, "Sigmoid");
    }
    if (inner == kNoValue || !is(inner, "Sigmoid")) return;
    branch.value = made_by(inner);
    const size_t outer = only_reader(branch, "Mul");
    if (outer == kNoValue || outer != readers[1] || other(outer, branch.value) != chain.value) return;
    chain.ending.activation = Activation::kSwish;
    chain.ending.beta = branch.ending.beta;
    if (scaled != kNoValue) append(chain, {scaled});
    append(chain, {inner, outer});
  }

  // Adds a Mul or Add of another computed value. Returns it, or kNoValue.
  size_t add_operand(Chain& chain, std::string_view type) {
    const size_t step = only_reader(chain, type);
    if (step == kNoValue) return kNoValue;
    const size_t operand = other(step, chain.value);
    if (operand == kNoValue || operand == chain.value || constant(operand)) return kNoValue;
    append(chain, {step});
    return operand;
  }

  // Moves each chain to where its last step was, where all of its operands are computed. A step may end one chain only.
  void order(const std::vector<Chain>& chains) {
    std::vector<const Chain*> chain_of(nodes_.size());
    for (const Chain& chain : chains) {
      if (std::any_of(chain.steps.begin(), chain.steps.end(), [&](size_t step) { return chain_of[step] != nullptr; })) {
        continue;
      }
      for (const size_t step : chain.steps) chain_of[step] = &chain;
    }
    std::vector<Step> steps;
    const auto move = [&](size_t step) { steps.push_back(std::move(graph_.steps[step])); };
    for (size_t i = 0; i < chain_of.size(); ++i) {
      const Chain* chain = chain_of[i];
      if (chain == nullptr) move(i);
      if (chain == nullptr || i != chain->steps.back()) continue;
      const size_t first = steps.size();
      for (const size_t step : chain->steps) move(step);
      Step fused = steps[first];
      fused.ending = chain->ending;
      fused.outputs = steps.back().outputs;
      steps[first].fused = graph_.fused.size();
      steps[first].replaced = chain->steps.size();
      graph_.fused.push_back(std::move(fused));
    }
    graph_.steps = std::move(steps);
  }

  PlannedGraph& graph_;
  const std::vector<const Node*>& nodes_;
  std::vector<std::vector<size_t>> readers_;  // steps, by value
  std::vector<bool> is_output_;
};

}  // namespace

void fuse_endings(PlannedGraph& graph, const std::vector<const Node*>& nodes) { Fuser(graph, nodes).run(); }

}  // namespace blip2rt
