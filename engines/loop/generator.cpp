// Checks the graphs of a language model. Knows tensor names.
#include "loop/generator.h"

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "ops/attention_op.h"
#include "ops/gather_op.h"

namespace blip2rt {
namespace {

using Names = std::vector<std::string>;

void require_ports(const Session& session, const Names& inputs, const Names& outputs) {
  std::string missing;
  for (const auto& name : inputs) {
    if (session.find_input(name) == nullptr) missing += " input " + name;
  }
  for (const auto& name : outputs) {
    if (session.find_output(name) == nullptr) missing += " output " + name;
  }
  if (session.inputs().size() > inputs.size()) missing += " (and it has unknown inputs)";
  if (!missing.empty()) throw std::runtime_error(session.path() + " does not fit the loop; it lacks:" + missing);
}

// Throws if a tensor is not float32, like the loop's memory.
void require_floats(const Session& session, const Port& port) {
  if (port.tensor.dtype == DType::kFloat32) return;
  throw std::runtime_error(session.path() + ": " + port.name + " is " + dtype_name(port.tensor.dtype) +
                           ", but the loop takes float32");
}

// Throws if a tensor is not float32, or a fixed size of the graph differs from the geometry.
void require_sizes(const Session& session, const Port& port, const std::vector<int64_t>& sizes) {
  require_floats(session, port);
  const std::vector<int64_t>& shape = port.tensor.shape;
  bool fits = shape.size() == sizes.size();
  for (size_t i = 0; fits && i < sizes.size(); ++i) fits = shape[i] < 0 || sizes[i] < 0 || shape[i] == sizes[i];
  if (fits) return;
  throw std::runtime_error(session.path() + ": " + port.name + " is " + shape_text(shape) +
                           ", but the model's geometry says " + shape_text(sizes));
}

// Appends prefix + key_0, prefix + value_0, prefix + key_1, ...
void append_layers(Names& names, const std::string& prefix, int layers) {
  for (int layer = 0; layer < layers; ++layer) {
    for (const char* part : {"key_", "value_"}) names.push_back(prefix + part + std::to_string(layer));
  }
}

}  // namespace

Generator::Generator(const Session& embed, const Session& llm, const LlmShape& shape, const Session* encoder,
                     int64_t decoder_start_token_id)
    : embed_(embed), llm_(llm), encoder_(encoder), shape_(shape), decoder_start_token_id_(decoder_start_token_id) {
  if (std::min({shape.layers, shape.kv_heads, shape.head_dim, shape.hidden_size, shape.vocab_size}) < 1) {
    throw std::runtime_error("layers, kv_heads, head_dim, hidden_size and vocab_size must be at least 1");
  }
  Names inputs = {"inputs_embeds", "position_ids", "last_index", "seqlens_k", "total_sequence_length"};
  Names outputs = {"logits"}, cross;
  append_layers(inputs, "past_", shape.layers);
  append_layers(outputs, "present_", shape.layers);
  for (const char* ours : {kCacheRows, kEncoderRows, kLogitRows}) {
    if (llm.find_input(ours) != nullptr) inputs.push_back(ours);
  }
  if (encoder != nullptr) {
    append_layers(cross, "cross_", shape.layers);
    require_ports(*encoder, {"inputs_embeds", "attention_mask"}, cross);
    inputs.push_back("encoder_mask");
    inputs.insert(inputs.end(), cross.begin(), cross.end());
  }
  require_ports(embed, {"token_ids"}, {"token_embeds"});
  require_ports(llm, inputs, outputs);
  if (llm.find_input(kCacheRows) == nullptr || (encoder != nullptr && llm.find_input(kEncoderRows) == nullptr)) {
    throw std::runtime_error(llm.path() + " has an attention that the core's cannot replace: export the model again");
  }
  require_sizes(embed, *embed.find_output("token_embeds"), {-1, -1, shape.hidden_size});
  require_sizes(llm, *llm.find_input("inputs_embeds"), {-1, -1, shape.hidden_size});
  require_sizes(llm, *llm.find_output("logits"), {-1, shape.vocab_size});
  for (size_t i = 5; i < 5 + static_cast<size_t>(shape.layers) * 2; ++i) {
    require_sizes(llm, *llm.find_input(inputs[i]), {-1, shape.kv_heads, -1, shape.head_dim});
  }
  for (const std::string& name : outputs) require_floats(llm, *llm.find_output(name));
  if (encoder == nullptr) return;

  const std::vector<int64_t>& heads = llm.find_input("cross_key_0")->tensor.shape;
  if (heads.size() != 4 || heads[1] < 1 || heads[3] < 1 || std::max(heads[1], heads[3]) > INT32_MAX) {
    throw std::runtime_error(llm.path() + ": cross_key_0 must have the shape (B, heads, S, head_dim)");
  }
  for (const std::string& name : cross) {
    require_floats(llm, *llm.find_input(name));
    require_floats(*encoder, *encoder->find_output(name));
  }
  cross_shape_ = {static_cast<int>(heads[1]), static_cast<int>(heads[3])};
  if (decoder_start_token_id < 0 || decoder_start_token_id >= shape.vocab_size) {
    throw std::runtime_error("decoder_start_token_id is " + std::to_string(decoder_start_token_id) +
                             ", outside the vocabulary of " + std::to_string(shape.vocab_size));
  }
}

}  // namespace blip2rt
