// Plans a graph: numbers its values, makes its operators, computes what depends on constants alone, and finds where
// each value is read last.
#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <stdexcept>

#include "base/utf8.h"
#include "executor/fuse.h"
#include "executor/operators.h"
#include "graphs/protobuf.h"
#include "graphs/rewrite_attention.h"
#include "ops/domain.h"

namespace blip2rt {
namespace {

// The attributes of one of our operators.
class NodeAttributes : public OperatorAttributes {
 public:
  explicit NodeAttributes(const Node& node) : node_(node) {}
  int64_t integer(const char* name) const override { return found(node_.ints, name); }
  float number(const char* name) const override { return found(node_.floats, name); }

 private:
  template <class T>
  static T found(const std::map<std::string_view, T>& attributes, const char* name) {
    const auto entry = attributes.find(name);
    if (entry == attributes.end()) throw std::runtime_error(std::string("it has no attribute ") + name);
    return entry->second;
  }

  const Node& node_;
};

Compute own_operator(const Node& node) {
  for (const OperatorType& type : operator_types()) {
    if (node.op_type != type.name) continue;
    const std::shared_ptr<const Operator> op = type.make(NodeAttributes(node));
    require(node.outputs.size() == type.outputs && node.inputs.size() <= type.inputs.size(),
            "it has too many inputs, or the wrong number of outputs");
    return [op, &type](NodeRun& run) {
      for (size_t i = 0; i < type.inputs.size(); ++i) {
        const DType given = run.input(i).dtype;
        require(given == type.inputs[i] || (given == DType::kUndefined && type.optional(i)),
                "an input is missing or has the wrong type");
      }
      op->compute(run);
    };
  }
  throw std::runtime_error("the core has no such operator");
}

Compute make_operator(const Node& node) {
  static const std::vector<OperatorKind> kinds = [] {
    std::vector<OperatorKind> all;
    for (const auto& some :
         {attention_kinds(), elementwise_kinds(), norm_kinds(), product_kinds(), shape_kinds(), table_kinds()}) {
      all.insert(all.end(), some.begin(), some.end());
    }
    return all;
  }();
  for (const OperatorKind& kind : kinds) {
    if (node.domain == kind.domain && node.op_type == kind.name) return kind.make(node);
  }
  if (node.domain == kDomain) return own_operator(node);
  throw std::runtime_error("the executor does not know this operator");
}

std::string title_of(const Node& node) {
  const std::string_view name = node.name.empty() && !node.outputs.empty() ? node.outputs[0] : node.name;
  return "node " + quoted(name) + " (" + std::string(single_line(node.op_type)) + ")";
}

Port read_port(std::string_view value) {
  const ValueInfo info(value);
  Port port{std::string(info.name), {info.dtype, {}}};
  for (const ValueInfo::Axis& axis : info.shape) port.tensor.shape.push_back(axis.size.value_or(-1));
  return port;
}

class Planner {
 public:
  Planner(PlannedGraph& planned, const GraphSource& source)
      : planned_(planned),
        weights_(source.weights),
        folding_{planned, *arena_, Deadline(source.run_timeout), source.folding_budget, {}, {}} {}

  void plan(const std::string& bytes) {
    const OnnxModel model(bytes);
    if (model.has_functions) throw std::runtime_error("it has functions, which the executor does not know");
    const Graph graph(model.graph);
    if (graph.has_graph) throw std::runtime_error("it has subgraphs, which the executor does not know");
    read_ports(model.graph);
    for (const Port& port : planned_.inputs) planned_.input_values.push_back(new_value(port.name));
    for (const auto& [name, constant] : graph.constants) {
      if (graph.use_counts.count(name) != 0) add_constant(name, constant);
    }
    std::deque<Node> own;
    const NodeChanges attention = rewrite_encoder_attention(graph, kFloatAttention);
    for (const Node& node : graph.nodes) {
      const auto change = node.outputs.empty() ? attention.end() : attention.find(node.outputs[0]);
      if (change == attention.end()) {
        add_step(node);
      } else {
        protobuf::Field field;
        for (protobuf::Reader reader(change->second); reader.next(field);) add_step(own.emplace_back(field.bytes));
      }
    }
    for (const Port& port : planned_.outputs) planned_.output_values.push_back(value_of(port.name));
    fuse_endings(planned_, nodes_);
    find_last_reads();
  }

 private:
  void read_ports(std::string_view graph) {
    constexpr uint32_t kInput = 11, kOutput = 12;
    protobuf::Field field;
    for (protobuf::Reader reader(graph); reader.next(field);) {
      if (field.number == kInput) planned_.inputs.push_back(read_port(field.bytes));
      if (field.number == kOutput) planned_.outputs.push_back(read_port(field.bytes));
    }
    for (const Port& port : planned_.inputs) {
      if (element_size(port.tensor.dtype) == 0 || port.tensor.shape.size() > TensorView::kMaxAxes) {
        throw std::runtime_error(quoted(port.name) + " has a type or rank that the executor does not support");
      }
    }
  }

  size_t new_value(std::string_view name) {
    const size_t value = planned_.constants.size();
    if (!values_.emplace(name, value).second) throw std::runtime_error("it has two values " + quoted(name));
    planned_.constants.emplace_back();
    return value;
  }

  size_t value_of(std::string_view name) const {
    const auto found = values_.find(name);
    if (found == values_.end()) throw std::runtime_error(quoted(name) + " is read before it is computed");
    return found->second;
  }

  void add_constant(std::string_view name, const Constant& constant) {
    const void* address = weights_.address(constant);
    const bool is_known = element_size(constant.dtype) > 0 || static_cast<int>(constant.dtype) == 21;  // uint4
    const std::vector<int64_t> shape(constant.shape.begin(), constant.shape.end());
    const bool fits = shape.size() <= TensorView::kMaxAxes && fits_memory(TensorView(nullptr, shape, constant.dtype));
    if (address == nullptr || !is_known || !fits) {
      throw std::runtime_error("the constant " + quoted(name) + " has a form that the executor does not support");
    }
    planned_.constants[new_value(name)] = TensorView(const_cast<void*>(address), shape, constant.dtype);
  }

  void add_step(const Node& node) {
    Step step;
    step.title = title_of(node);
    for (const std::string_view name : node.inputs) step.inputs.push_back(name.empty() ? kNoValue : value_of(name));
    try {
      step.compute = make_operator(node);
    } catch (const std::runtime_error& error) {
      throw std::runtime_error(step.title + ": " + error.what());
    }
    for (const std::string_view name : node.outputs) step.outputs.push_back(name.empty() ? kNoValue : new_value(name));
    const auto is_constant = [&](size_t value) { return value == kNoValue || planned_.constants[value]; };
    if (std::all_of(step.inputs.begin(), step.inputs.end(), is_constant)) return fold(step);
    planned_.steps.push_back(std::move(step));
    nodes_.push_back(&node);
  }

  // Computes the outputs of a step, which depend on constants alone.
  void fold(const Step& step) {
    std::vector<Slot>& slots = folding_.slots;
    slots.resize(planned_.constants.size());
    for (const size_t value : step.inputs) {
      if (value != kNoValue) slots[value].view = planned_.constants[value];
    }
    run_step(folding_, step);
    for (const size_t value : step.outputs) {
      if (value == kNoValue) continue;
      Slot& made = slots[value];
      TensorView& view = planned_.constants[value] = made.view;
      if (made.block == nullptr) continue;
      view.data = planned_.folded.emplace_back(view.as<char>(), view.bytes()).data();
      if (--made.block->users == 0) arena_->give_back(made.block);
      made.block = nullptr;
    }
  }

  void find_last_reads() {
    std::set<size_t> ended(planned_.output_values.begin(), planned_.output_values.end());
    for (size_t i = planned_.steps.size(); i-- > 0;) {
      Step& step = planned_.steps[i];
      for (const auto* list : {&step.inputs, &step.outputs}) {
        for (const size_t value : *list) {
          if (value != kNoValue && ended.insert(value).second) step.last.push_back(value);
        }
      }
    }
    for (size_t i = 0; i < planned_.steps.size(); ++i) {
      const Step& first = planned_.steps[i];
      for (size_t n = 0; first.fused != kNoValue && n < first.replaced; ++n) {
        const std::vector<size_t>& last = planned_.steps[i + n].last;
        std::vector<size_t>& of_fused = planned_.fused[first.fused].last;
        of_fused.insert(of_fused.end(), last.begin(), last.end());
      }
    }
  }

  PlannedGraph& planned_;
  Weights& weights_;
  LeasedArena arena_;
  GraphRun folding_;
  std::map<std::string, size_t, std::less<>> values_;
  std::vector<const Node*> nodes_;  // of each step
};

}  // namespace

PlannedGraph plan_graph(const GraphSource& source) {
  PlannedGraph planned;
  planned.threads = source.threads > 0 ? static_cast<size_t>(source.threads) : default_threads();
  planned.run_timeout = source.run_timeout;
  Planner(planned, source).plan(source.model());
  return planned;
}

}  // namespace blip2rt
