// Recognises attention subgraphs and replaces them.
#include "graphs/rewrite_attention.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "ops/attention_op.h"
#include "ops/domain.h"
#include "ops/gather_op.h"

namespace blip2rt {
namespace {

constexpr int64_t kMaxHeads = 1 << 16;

// Returns whether a GroupQueryAttention has only supported attributes; others must be zero.
bool has_supported_attributes(const Node& node) {
  const auto is_ours = [](std::string_view name) {
    for (const char* known : {"num_heads", "kv_num_heads", "local_window_size", "do_rotary"}) {
      if (name == known) return true;
    }
    return false;
  };
  for (const auto& [name, number] : node.ints) {
    if (!is_ours(name) && number != 0) return false;
  }
  for (const auto& [name, value] : node.floats) {
    if (name != "scale" && name != "softcap" && value != 0) return false;
  }
  return node.ints.size() + node.floats.size() == node.attribute_types.size();
}

// Writes an Attention for a GroupQueryAttention, or returns an empty string if it is unsupported.
std::string cache_attention(const Node& node, const Graph& graph) {
  enum Input : size_t { kQuery, kKey, kValue, kPastK, kPastV, kLengths, kTotal, kCos, kSin, kPlaces, kBias, kInputs };
  constexpr size_t kOutputs = 3;
  const auto input = [&](size_t index) { return node.input(index); };
  const auto is_input = [&](std::string_view value, std::string_view name) {
    return value == name && graph.inputs.count(name) != 0;
  };
  const auto factor = [&](const char* name) {
    const auto found = node.floats.find(name);
    return found == node.floats.end() ? 0.0f : found->second;
  };
  const int64_t heads = node.number("num_heads", 0), kv_heads = node.number("kv_num_heads", 0);
  const int64_t window = node.number("local_window_size", -1), rotary = node.number("do_rotary", 0);
  const bool rotates = rotary == 1;
  const bool fits = heads > 0 && heads <= kMaxHeads && kv_heads > 0 && heads % kv_heads == 0 &&
                    (window == -1 || (window > 0 && window <= INT32_MAX)) && (rotary == 0 || rotates) &&
                    std::isfinite(factor("scale")) && factor("softcap") >= 0 && std::isfinite(factor("softcap")) &&
                    has_supported_attributes(node);
  // The cache is the loop's own memory, a graph input. No other node may read it: rows may be outside the tensor's
  // shape, and the shape may show more rows than exist.
  const auto is_cache = [&](std::string_view past, std::string_view present) {
    const auto found = graph.inputs.find(past);
    const auto asks_shape = [past](const Node& one) {
      return one.domain.empty() && one.op_type == "Shape" && !one.inputs.empty() && one.inputs.front() == past;
    };
    const auto shapes = static_cast<size_t>(std::count_if(graph.nodes.begin(), graph.nodes.end(), asks_shape));
    return found != graph.inputs.end() && found->second == DType::kFloat32 && graph.outputs.count(present) != 0 &&
           graph.use_counts.at(past) == 1 + shapes && graph.use_counts.at(present) == 1;
  };
  if (!fits || node.outputs.size() != kOutputs || node.outputs[0].empty() || node.inputs.size() > kInputs ||
      input(kQuery).empty() || input(kKey).empty() != input(kValue).empty() || !input(kPlaces).empty() ||
      !is_cache(input(kPastK), node.outputs[1]) || !is_cache(input(kPastV), node.outputs[2]) ||
      !is_input(input(kLengths), "seqlens_k") || !is_input(input(kTotal), "total_sequence_length") ||
      (rotates && (input(kCos).empty() || input(kSin).empty()))) {
    return "";
  }
  const std::string_view none;
  return write_node(node, kDomain, kAttention,
                    {input(kQuery), input(kKey), input(kValue), input(kPastK), input(kPastV), kCacheRows,
                     rotates ? input(kCos) : none, rotates ? input(kSin) : none, input(kBias)},
                    {{"num_heads", static_cast<uint64_t>(heads)},
                     {"kv_num_heads", static_cast<uint64_t>(kv_heads)},
                     {"local_window_size", static_cast<uint64_t>(window)}},
                    {{"scale", factor("scale")}, {"softcap", factor("softcap")}});
}

// Returns whether a node works along the last of `axes` axes; `otherwise` is the default axis.
bool is_over_last_axis(const Node& node, int64_t axes, int64_t otherwise) {
  const int64_t axis = node.number("axis", otherwise);
  return axis == -1 || axis == axes - 1;
}

bool starts_with(std::string_view text, std::string_view with) { return text.substr(0, with.size()) == with; }

}  // namespace

bool is_rewritable(const OnnxModel& model, const Graph& graph) {
  return !graph.has_graph &&      // a subgraph may use a removed value
         model.microsoft == 1 &&  // other versions may differ
         !model.has_functions &&  // a function may override an operator
         !graph.has(kCacheRows) && !graph.has(kEncoderRows) && !graph.has(kLogitRows);
}

NodeChanges rewrite_cache_attention(const Graph& graph) {
  NodeChanges changes;
  std::set<std::string_view> cached;  // cache tensors of the replaced nodes
  for (const Node& node : graph.nodes) {
    if (node.domain != "com.microsoft" || node.op_type != "GroupQueryAttention") continue;
    const std::string written = cache_attention(node, graph);
    if (written.empty()) return {};
    changes[node.outputs[0]] = written;
    for (const std::string_view name : {node.inputs[3], node.inputs[4], node.outputs[1], node.outputs[2]}) {
      if (!cached.insert(name).second) return {};
    }
  }
  // A cache without a replaced attention would be read and written by its tensor shape.
  const auto is_foreign_cache = [&](std::string_view name) {
    const bool is_cache = starts_with(name, "past_key_") || starts_with(name, "past_value_") ||
                          starts_with(name, "present_key_") || starts_with(name, "present_value_");
    return is_cache && cached.count(name) == 0;
  };
  for (const auto& [name, type] : graph.inputs) {
    if (is_foreign_cache(name)) return {};
  }
  if (std::any_of(graph.outputs.begin(), graph.outputs.end(), is_foreign_cache)) return {};
  return changes;
}

NodeChanges rewrite_cross_attention(const Graph& graph) {
  constexpr std::string_view kKeys = "cross_key_", kValues = "cross_value_";
  NodeChanges changes;
  size_t found = 0, used = 0;
  for (const auto& [name, uses] : graph.use_counts) {
    if (!starts_with(name, kKeys) && !starts_with(name, kValues)) continue;
    const auto fed = graph.inputs.find(name);  // fed by the loop, which owns the rows
    if (fed == graph.inputs.end() || fed->second != DType::kFloat32) return {};
    used += uses;
  }
  for (const Node& node : graph.nodes) {
    if (!node.is("MatMul") || node.inputs.size() != 2 || node.outputs.size() != 1 ||
        !starts_with(node.inputs[1], kValues)) {
      continue;
    }
    const Node* softmax = graph.sole_producer(&node, 0, "Softmax", 1);
    const Node* add = graph.sole_producer(softmax, 0, "Add", 2);
    const Node* scores = graph.sole_producer(add, 0, "MatMul", 2);
    const Node* transpose = graph.sole_producer(scores, 1, "Transpose", 1);
    if (transpose == nullptr || !starts_with(transpose->inputs[0], kKeys) || !is_over_last_axis(*softmax, 4, -1) ||
        !transpose->has_list("perm", {0, 1, 3, 2})) {
      return {};
    }
    for (const Node* dropped : {softmax, add, scores, transpose}) changes[dropped->outputs[0]] = "";
    changes[node.outputs[0]] =
        write_node(node, kDomain, kCrossAttention,
                   {scores->inputs[0], transpose->inputs[0], node.inputs[1], add->inputs[1], kEncoderRows}, {});
    ++found;
  }
  return 2 * found == used ? changes : NodeChanges();
}

NodeChanges rewrite_encoder_attention(const Graph& graph, std::string_view type) {
  NodeChanges changes;
  for (const Node& node : graph.nodes) {
    if (!node.is("Reshape") || node.inputs.size() != 2 || node.outputs.size() != 1) {
      continue;
    }
    const Node* back = graph.sole_producer(&node, 0, "Transpose", 1);
    const Node* sum = graph.sole_producer(back, 0, "MatMul", 2);
    const Node* softmax = graph.sole_producer(sum, 0, "Softmax", 1);
    const Node* scaled = graph.sole_producer(softmax, 0, "Mul", 2);
    const Node* scores = graph.sole_producer(scaled, 0, "MatMul", 2);
    const Node* turned[] = {graph.sole_producer(scores, 0, "Transpose", 1),
                            graph.sole_producer(scores, 1, "Transpose", 1),
                            graph.sole_producer(sum, 1, "Transpose", 1)};
    const Node *heads[3], *split = nullptr;
    for (size_t i = 0; i < 3; ++i) {
      heads[i] = graph.sole_producer(turned[i], 0, "Reshape", 2);
      const Node* whole = graph.sole_producer(heads[i], 0, "Split", 1, 3);
      const bool alike =
          i == 0 || (heads[i] != nullptr && whole == split && heads[i]->inputs[1] == heads[0]->inputs[1]);
      const bool in_order = whole != nullptr && whole->outputs[i] == heads[i]->inputs[0];
      split = alike && in_order ? whole : nullptr;
      if (split == nullptr) break;
    }
    if (split == nullptr || !turned[0]->has_list("perm", {0, 2, 1, 3}) || !turned[1]->has_list("perm", {0, 2, 3, 1}) ||
        !turned[2]->has_list("perm", {0, 2, 1, 3}) || !back->has_list("perm", {0, 2, 1, 3}) ||
        !is_over_last_axis(*softmax, 4, -1) || !is_over_last_axis(*split, 3, 0)) {
      continue;
    }
    const auto sizes = [&](std::string_view name, uint64_t count) {
      const Constant* constant = graph.constant(name, DType::kInt64);
      const bool fits = constant != nullptr && constant->has_shape({count});
      return fits ? constant->values<int64_t>(count) : std::vector<int64_t>();
    };
    const auto shape = sizes(heads[0]->inputs[1], 4), joined = sizes(node.inputs[1], 3);
    const Constant* factor = graph.constant(scaled->inputs[1], DType::kFloat32);
    const auto scale = factor == nullptr || factor->shape.size() > 4 ? std::vector<float>() : factor->values<float>(1);
    const auto is_size = [](int64_t size) { return size > 0 && size < 1 << 20; };
    // -1: any number of images. 0 would copy the first axis of the input.
    if (shape.empty() || joined.empty() || scale.empty() || (shape[0] != -1 && !is_size(shape[0])) ||
        !is_size(shape[1]) || !is_size(shape[2]) || !is_size(shape[3]) || joined[0] != shape[0] ||
        joined[1] != shape[1] || joined[2] != shape[2] * shape[3]) {
      continue;
    }
    for (const Node* dropped : {back, sum, softmax, scaled, scores, split}) changes[dropped->outputs[0]] = "";
    for (size_t i = 0; i < 3; ++i) changes[turned[i]->outputs[0]] = changes[heads[i]->outputs[0]] = "";
    changes[node.outputs[0]] = write_node(node, kDomain, type, {split->inputs[0]},
                                          {{"images", static_cast<uint64_t>(shape[0])},
                                           {"positions", static_cast<uint64_t>(shape[1])},
                                           {"num_heads", static_cast<uint64_t>(shape[2])},
                                           {"width", static_cast<uint64_t>(shape[3])}},
                                          {{"scale", scale[0]}});
  }
  return changes;
}

}  // namespace blip2rt
