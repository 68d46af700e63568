// Recognises attention and writes our operators for it. Knows node types.
#include "graphs/rewrite_attention.h"

#include "kernels/attention/encoder_attention.h"
#include "ops/attention_op.h"
#include "ops/domain.h"

namespace blip2rt {
namespace {

// Writes our Attention for a GroupQueryAttention. Returns an empty string where it asks for what ours cannot do.
std::string cache_attention(const Node& node) {
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
    return static_cast<uint64_t>(node.number(name, otherwise));
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
  return written_node(node, kDomain, kAttention,
                      {input(kQuery), input(kKey), input(kValue), input(kPastKey), input(kPastValue), kCacheRows,
                       rotates ? input(kCos) : none, rotates ? input(kSin) : none, input(kBias)},
                      {{"num_heads", number("num_heads", 0)},
                       {"kv_num_heads", number("kv_num_heads", 0)},
                       {"local_window_size", number("local_window_size", -1)}},
                      {{"scale", factor("scale")}, {"softcap", factor("softcap")}});
}

// Returns whether a node works along the last of `axes` axes. `otherwise` is its axis where it names none.
bool is_over_last_axis(const Node& node, int64_t axes, int64_t otherwise) {
  const int64_t axis = node.number("axis", otherwise);
  return axis == -1 || axis == axes - 1;
}

bool starts_with(std::string_view text, std::string_view with) { return text.substr(0, with.size()) == with; }

}  // namespace

Changes cache_attentions(const Parts& parts) {
  Changes changes;
  for (const Node& node : parts.nodes) {
    if (node.domain != "com.microsoft" || node.op_type != "GroupQueryAttention") continue;
    const std::string written = cache_attention(node);
    if (written.empty()) return {};
    changes[node.outputs[0]] = written;
  }
  return changes;
}

Changes cross_attentions(const Parts& parts) {
  constexpr std::string_view kKeys = "cross_key_", kValues = "cross_value_";
  Changes changes;
  size_t found = 0, used = 0;
  for (const auto& [name, uses] : parts.uses) {
    if (starts_with(name, kKeys) || starts_with(name, kValues)) used += uses;
  }
  for (const Node& node : parts.nodes) {
    if (node.op_type != "MatMul" || node.inputs.size() != 2 || !starts_with(node.inputs[1], kValues)) continue;
    const Node* softmax = parts.maker(&node, 0, "Softmax", 1);
    const Node* add = parts.maker(softmax, 0, "Add", 2);
    const Node* scores = parts.maker(add, 0, "MatMul", 2);
    const Node* transpose = parts.maker(scores, 1, "Transpose", 1);
    if (transpose == nullptr || !starts_with(transpose->inputs[0], kKeys) || !is_over_last_axis(*softmax, 4, -1) ||
        !transpose->has_list("perm", {0, 1, 3, 2})) {
      return {};
    }
    for (const Node* dropped : {softmax, add, scores, transpose}) changes[dropped->outputs[0]] = "";
    changes[node.outputs[0]] =
        written_node(node, kDomain, kCrossAttention,
                     {scores->inputs[0], transpose->inputs[0], node.inputs[1], add->inputs[1], kEncoderRows}, {});
    ++found;
  }
  return 2 * found == used ? changes : Changes();
}

Changes encoder_attentions(const Parts& parts) {
  Changes changes;
  if (encoder_attention_kernel() == nullptr) return changes;
  for (const Node& node : parts.nodes) {
    if (node.op_type != "Reshape" || node.inputs.size() != 2) continue;
    const Node* back = parts.maker(&node, 0, "Transpose", 1);
    const Node* sum = parts.maker(back, 0, "MatMul", 2);
    const Node* softmax = parts.maker(sum, 0, "Softmax", 1);
    const Node* scaled = parts.maker(softmax, 0, "Mul", 2);
    const Node* scores = parts.maker(scaled, 0, "MatMul", 2);
    const Node* turned[] = {parts.maker(scores, 0, "Transpose", 1), parts.maker(scores, 1, "Transpose", 1),
                            parts.maker(sum, 1, "Transpose", 1)};
    const Node *heads[3], *split = nullptr;
    for (size_t i = 0; i < 3; ++i) {
      heads[i] = parts.maker(turned[i], 0, "Reshape", 2);
      const Node* whole = parts.maker(heads[i], 0, "Split", 1);
      const bool alike =
          i == 0 || (heads[i] != nullptr && whole == split && heads[i]->inputs[1] == heads[0]->inputs[1]);
      split = alike && whole != nullptr && whole->outputs.size() == 3 && whole->outputs[i] == heads[i]->inputs[0]
                  ? whole
                  : nullptr;
      if (split == nullptr) break;
    }
    if (split == nullptr || !turned[0]->has_list("perm", {0, 2, 1, 3}) || !turned[1]->has_list("perm", {0, 2, 3, 1}) ||
        !turned[2]->has_list("perm", {0, 2, 1, 3}) || !back->has_list("perm", {0, 2, 1, 3}) ||
        !is_over_last_axis(*softmax, 4, -1) || !is_over_last_axis(*split, 3, 0)) {
      continue;
    }
    const auto values = [&](std::string_view name, DType type, auto like, size_t count) {
      const Constant* constant = parts.constant(name, type);
      return constant == nullptr ? std::vector<decltype(like)>() : constant->values<decltype(like)>(count);
    };
    const auto shape = values(heads[0]->inputs[1], DType::kInt64, int64_t(), 4);
    const auto joined = values(node.inputs[1], DType::kInt64, int64_t(), 3);
    const auto scale = values(scaled->inputs[1], DType::kFloat32, float(), 1);
    if (shape.empty() || joined.empty() || scale.empty() || shape[1] <= 0 || shape[2] <= 0 || shape[3] <= 0 ||
        joined[0] != shape[0] || joined[1] != shape[1] || joined[2] != shape[2] * shape[3]) {
      continue;
    }
    for (const Node* dropped : {back, sum, softmax, scaled, scores, split}) changes[dropped->outputs[0]] = "";
    for (size_t i = 0; i < 3; ++i) changes[turned[i]->outputs[0]] = changes[heads[i]->outputs[0]] = "";
    changes[node.outputs[0]] =
        written_node(node, kDomain, kEncoderAttention, {split->inputs[0]},
                     {{"positions", static_cast<uint64_t>(shape[1])}, {"num_heads", static_cast<uint64_t>(shape[2])}},
                     {{"scale", scale[0]}});
  }
  return changes;
}

}  // namespace blip2rt
