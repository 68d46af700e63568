// Decides which operators of a graph are replaced by custom ones.
#include "graphs/rewrite.h"

#include <algorithm>
#include <iterator>
#include <string_view>
#include <utility>

#include "graphs/onnx_graph.h"
#include "graphs/rewrite_attention.h"
#include "graphs/rewrite_matmul.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/encoder_attention.h"
#include "kernels/dispatch.h"
#include "kernels/int4/matmul.h"
#include "kernels/int8/matmul.h"
#include "ops/attention_op.h"
#include "ops/domain.h"
#include "ops/gather_op.h"

namespace blip2rt {
namespace {

std::string attention_name() { return std::string("attention ") + attention_kernel()->name; }
std::string int4_name() { return std::string("int4 ") + int4_kernel()->name; }
std::string int8_name() { return std::string("int8 ") + int8_kernel()->name; }
std::string encoder_attention_name() { return std::string("encoder attention ") + encoder_attention_kernel()->name; }

struct Products {
  NodeChanges changes;
  bool int4 = false, int8 = false;  // whether any product was replaced
};

Products replace_products(Graph& graph, const CustomOps& ops, Weights& weights) {
  Products products;
  const ConstantSources sources = find_constant_sources(graph);
  for (const Node& node : graph.nodes) {
    if (node.domain != "com.microsoft" || node.outputs.size() != 1) continue;
    std::string written;
    if (ops.int4) written = rewrite_int4(node, graph, sources, ops.threads, weights);
    products.int4 = products.int4 || !written.empty();
    if (written.empty() && ops.int8) {
      written = rewrite_int8(node, graph, sources, ops.threads, weights);
      products.int8 = products.int8 || !written.empty();
    }
    if (!written.empty()) products.changes[node.outputs[0]] = written;
  }
  if (products.changes.empty()) return products;  // a value without a reader is no reason to rewrite
  for (const auto& [made, constant] : sources) {  // the derived value is no longer used
    if (graph.use_counts[made] > 0) continue;
    products.changes[made] = "";
    --graph.use_counts[constant];
  }
  return products;
}

// Replaces each GatherND with one batch axis. With `selects`, a single one gets the input logit_rows: returns true.
bool replace_gathers(const Graph& graph, bool selects, NodeChanges& changes) {
  const auto is_gather = [](const Node& node) {
    return node.op_type == "GatherND" && node.domain.empty() && node.number("batch_dims", 0) == 1 &&
           node.inputs.size() == 2 && node.outputs.size() == 1;
  };
  selects = selects && std::count_if(graph.nodes.begin(), graph.nodes.end(), is_gather) == 1;
  for (const Node& node : graph.nodes) {
    if (!is_gather(node)) continue;
    std::vector<std::string_view> inputs = node.inputs;
    if (selects) inputs.push_back(kLogitRows);
    changes[node.outputs[0]] = write_node(node, kDomain, kGatherRow, inputs, {});
  }
  return selects;
}

// ONNX Runtime's own divides by zero if what is added to `x` has no rows.
void replace_skip_norms(const Graph& graph, NodeChanges& changes) {
  enum Input : size_t { kX, kSkip, kWeight, kInputs };
  enum Output : size_t { kNorm, kSum = 3, kOutputs };
  for (const Node& node : graph.nodes) {
    if (node.op_type != kSkipNorm || node.domain != "com.microsoft" || node.inputs.size() != kInputs ||
        node.outputs.size() != kOutputs || node.floats.count("epsilon") == 0) {
      continue;
    }
    Node sum = node, norm = node;
    sum.name = "";  // names are unique
    sum.outputs = {node.outputs[kSum]};
    norm.outputs = {node.outputs[kNorm]};
    changes[node.outputs[kNorm]] =
        write_node(sum, "", "Add", {node.inputs[kX], node.inputs[kSkip]}, {}) +
        write_node(norm, "", "SimplifiedLayerNormalization", {node.outputs[kSum], node.inputs[kWeight]},
                   {{"axis", static_cast<uint64_t>(-1)}}, {*node.floats.find("epsilon")});
  }
}

// Returns the graph with custom operators, or an empty string if nothing is replaced.
std::string rewritten_graph(const OnnxModel& model, const CustomOps& ops, Weights& weights,
                            std::vector<std::string>& kernels) {
  constexpr uint64_t kOldest = 13;  // the first opset with today's Softmax and Split
  Graph graph(model.graph);
  if (!is_rewritable(model, graph)) return "";
  NodeChanges cache, cross, encoder;
  if (ops.attention) cache = rewrite_cache_attention(graph);
  if (!cache.empty() && model.opset >= kOldest) cross = rewrite_cross_attention(graph);
  Products products = replace_products(graph, ops, weights);
  // int8 products cost more precision than bfloat16 attention, so a user who accepts them accepts both.
  if (products.int8 && encoder_attention_kernel() != nullptr && model.opset >= kOldest) {
    encoder = rewrite_encoder_attention(graph, kEncoderAttention);
  }
  if (!cache.empty()) kernels.push_back(attention_name());
  if (products.int4) kernels.push_back(int4_name());
  if (products.int8) kernels.push_back(int8_name());
  if (!encoder.empty()) kernels.push_back(encoder_attention_name());
  std::vector<std::string> inputs;
  if (!cache.empty()) inputs.push_back(write_input(kCacheRows, 4));
  if (!cross.empty()) inputs.push_back(write_input(kEncoderRows, 2));
  NodeChanges changes = std::move(products.changes);
  if (ops.attention && replace_gathers(graph, !cache.empty(), changes)) inputs.push_back(write_input(kLogitRows, 0));
  if (ops.attention) replace_skip_norms(graph, changes);
  for (NodeChanges* more : {&cache, &cross, &encoder}) changes.merge(*more);
  if (changes.empty()) return "";
  return apply_changes(model.graph, graph, changes, inputs);
}

}  // namespace

RewrittenGraph rewrite_model(const std::string& model, CustomOps ops, Weights& weights) {
  RewrittenGraph result;
  const std::string graph = rewritten_graph(OnnxModel(model), ops, weights, result.kernels);
  if (!graph.empty()) result.bytes = replace_graph(model, graph, kDomain);
  return result;
}

std::vector<std::string> processor_kernels() {
  std::vector<std::string> names = {attention_name()};
  if (int4_kernel() != nullptr) names.push_back(int4_name());
  if (int8_kernel() != nullptr) names.push_back(int8_name());
  if (encoder_attention_kernel() != nullptr) names.push_back(encoder_attention_name());
  return names;
}

std::string missing_instructions() {
  const char* missing = missing_baseline();
  return missing == nullptr ? "" : missing;
}

std::vector<std::string> kernel_levels() {
  std::vector<std::string> names;
  for (size_t i = std::size(kLevelNames); i-- > 0;) {
    if (supports(static_cast<Level>(i))) names.push_back(kLevelNames[i]);
  }
  return names;
}

}  // namespace blip2rt
