// Checks the graphs of a language model. Knows tensor names.
#include "loop/generator.h"

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

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

// Throws if a tensor has another type than the loop's memory.
void require_type(const Session& session, const Port& port, DType dtype) {
  if (port.tensor.dtype == dtype && (dtype == DType::kFloat32 || dtype == DType::kFloat16)) return;
  throw std::runtime_error(session.path() + ": " + port.name + " is " + dtype_name(port.tensor.dtype) +
                           ", but the loop takes " + dtype_name(dtype));
}

// Throws if a tensor has another type, or a fixed size of the graph differs from the geometry.
void require_sizes(const Session& session, const Port& port, const std::vector<int64_t>& sizes,
                   DType dtype = DType::kFloat32) {
  require_type(session, port, dtype);
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
  const bool has_rows = llm.find_input("past_mask") != nullptr;
  Names inputs = {"inputs_embeds", "position_ids", "last_index"}, outputs = {"logits"}, past, cross;
  append_layers(past, "past_", shape.layers);
  append_layers(outputs, has_rows ? "new_" : "present_", shape.layers);
  inputs.insert(inputs.end(), past.begin(), past.end());
  if (has_rows) {
    inputs.push_back("past_mask");
  } else {
    inputs.insert(inputs.end(), {"seqlens_k", "total_sequence_length"});
  }
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
  if (!has_rows &&
      (llm.find_input(kCacheRows) == nullptr || (encoder != nullptr && llm.find_input(kEncoderRows) == nullptr))) {
    throw std::runtime_error(llm.path() + " has an attention that the core's cannot replace: export the model again");
  }
  require_sizes(embed, *embed.find_output("token_embeds"), {-1, -1, shape.hidden_size});
  require_sizes(llm, *llm.find_input("inputs_embeds"), {-1, -1, shape.hidden_size});
  require_sizes(llm, *llm.find_output("logits"), {-1, shape.vocab_size});
  if (has_rows) set_rows();
  for (const std::string& name : past) {
    require_sizes(llm, *llm.find_input(name), {-1, shape.kv_heads, -1, shape.head_dim}, rows_.dtype);
  }
  for (size_t i = 1; i < outputs.size(); ++i) require_type(llm, *llm.find_output(outputs[i]), rows_.dtype);
  if (encoder != nullptr) check_encoder(cross);
}

// Reads what an engine with a cache for each row was built for.
void Generator::set_rows() {
  const TensorInfo& past = llm_.find_input("past_key_0")->tensor;
  const int64_t capacity = past.shape.size() == 4 ? past.shape[2] : -1;
  if (llm_.max_rows() < 1 || capacity < 1 || capacity > INT32_MAX) {
    throw std::runtime_error(llm_.path() + ": past_key_0 has no fixed number of " +
                             (capacity < 1 ? "positions" : "rows") + ": build the plans again");
  }
  rows_ = {llm_.max_rows(), static_cast<int>(capacity), past.dtype};
}

void Generator::check_encoder(const std::vector<std::string>& cross) {
  const std::vector<int64_t>& heads = llm_.find_input("cross_key_0")->tensor.shape;
  if (heads.size() != 4 || heads[1] < 1 || heads[3] < 1 || std::max(heads[1], heads[3]) > INT32_MAX) {
    throw std::runtime_error(llm_.path() + ": cross_key_0 must have the shape (B, heads, S, head_dim)");
  }
  for (const std::string& name : cross) {
    require_type(llm_, *llm_.find_input(name), rows_.dtype);
    require_type(*encoder_, *encoder_->find_output(name), rows_.dtype);
  }
  cross_shape_ = {static_cast<int>(heads[1]), static_cast<int>(heads[3])};
  if (decoder_start_token_id_ < 0 || decoder_start_token_id_ >= shape_.vocab_size) {
    throw std::runtime_error("decoder_start_token_id is " + std::to_string(decoder_start_token_id_) +
                             ", outside the vocabulary of " + std::to_string(shape_.vocab_size));
  }
}

std::shared_ptr<void> Generator::take_idle() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (idle_.empty()) return nullptr;
  std::shared_ptr<void> idle = std::move(idle_.back());
  idle_.pop_back();
  return idle;
}

void Generator::give_back(std::shared_ptr<void> idle) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  idle_.push_back(std::move(idle));
}

}  // namespace blip2rt
