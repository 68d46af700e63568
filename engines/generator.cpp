// The generation loop, from the prefill to the last stop token. Reads top to bottom as the data flows.
// Knows which rows of the batch belong to which image; scoring, cache and graphs are its neighbours' work.
#include "generator.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "decoder.h"

namespace blip2rt {
namespace {

// An image that is still being captioned. The i-th one in the batch owns the rows [i * beams, (i + 1) * beams).
struct Active {
  size_t image;
  int prompt_length;  // prefix and prompt, in positions
  Search search;
};

void require_ports(const Session& session, const std::vector<std::string>& inputs,
                   const std::vector<std::string>& outputs) {
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

void validate(const Prefix& prefix, const std::vector<std::vector<int64_t>>& prompts, const LlmShape& shape) {
  if (static_cast<size_t>(prefix.images) != prompts.size()) {
    throw std::runtime_error("prefix_embeds has " + std::to_string(prefix.images) + " images but there are " +
                             std::to_string(prompts.size()) + " prompts");
  }
  for (size_t i = 0; i < prompts.size(); ++i) {
    if (prefix.length == 0 && prompts[i].empty()) {
      throw std::runtime_error("image " + std::to_string(i) + " has neither prefix nor prompt");
    }
    for (int64_t token : prompts[i]) {
      if (token >= 0 && token < shape.vocab_size) continue;
      throw std::runtime_error("prompt " + std::to_string(i) + " has token id " + std::to_string(token) +
                               ", outside the vocabulary of " + std::to_string(shape.vocab_size));
    }
  }
}

// Takes finished images out of the batch: the last one takes a finished one's rows. True if any left.
bool retire(std::vector<Active>& active, Decoder& decoder, int rows_each, int steps,
            std::vector<std::vector<Hypothesis>>& results) {
  const size_t before = active.size();
  for (size_t i = active.size(); i-- > 0;) {
    if (!active[i].search.done()) continue;
    results[active[i].image] = active[i].search.results();
    const size_t last = active.size() - 1;
    if (i != last) {
      for (int beam = 0; beam < rows_each; ++beam) {
        const int from = static_cast<int>(last) * rows_each + beam, to = static_cast<int>(i) * rows_each + beam;
        decoder.cache().copy_row(from, to, 0, active[last].prompt_length + steps);
      }
      active[i] = std::move(active[last]);
    }
    active.pop_back();
  }
  return active.size() != before;
}

// From one row an image to one row a beam. Backwards, so that no row is overwritten before it is read.
void spread_to_beams(const std::vector<Active>& active, Decoder& decoder, int beams) {
  for (int i = static_cast<int>(active.size()) - 1; i >= 0; --i) {
    for (int beam = beams - 1; beam >= 0; --beam) {
      decoder.cache().copy_row(i, i * beams + beam, 0, active[static_cast<size_t>(i)].prompt_length);
    }
  }
}

}  // namespace

Generator::Generator(const Session& embed, const Session& llm, const LlmShape& shape)
    : embed_(embed), llm_(llm), shape_(shape) {
  if (std::min({shape.layers, shape.kv_heads, shape.head_dim, shape.hidden_size, shape.vocab_size}) < 1) {
    throw std::runtime_error("layers, kv_heads, head_dim, hidden_size and vocab_size must be at least 1");
  }
  std::vector<std::string> inputs = {"inputs_embeds", "position_ids", "last_index", "seqlens_k",
                                     "total_sequence_length"};
  std::vector<std::string> outputs = {"logits"};
  for (int layer = 0; layer < shape.layers; ++layer) {
    for (const char* part : {"key_", "value_"}) {
      inputs.push_back("past_" + (part + std::to_string(layer)));
      outputs.push_back("present_" + (part + std::to_string(layer)));
    }
  }
  require_ports(embed, {"token_ids"}, {"token_embeds"});
  require_ports(llm, inputs, outputs);
}

std::vector<std::vector<Hypothesis>> Generator::generate(const Prefix& prefix,
                                                         const std::vector<std::vector<int64_t>>& prompts,
                                                         const SearchOptions& options,
                                                         const std::function<void()>& before_step) const {
  validate(prefix, prompts, shape_);
  const auto vocab_size = static_cast<size_t>(shape_.vocab_size);
  options.validate(vocab_size);
  std::vector<std::vector<Hypothesis>> results(prompts.size());
  if (prompts.empty()) return results;

  const int beams = options.num_beams;
  std::vector<Active> active;
  int longest = 0;
  for (size_t image = 0; image < prompts.size(); ++image) {
    const int length = prefix.length + static_cast<int>(prompts[image].size());
    longest = std::max(longest, length);
    active.push_back({image, length, Search(options, vocab_size)});
  }
  Decoder decoder(embed_, llm_, shape_, prefix.images * beams, longest + options.max_new_tokens);

  before_step();
  decoder.prefill(prefix, prompts);
  for (size_t i = 0; i < active.size(); ++i) active[i].search.advance(decoder.logits(static_cast<int>(i)), 1);
  retire(active, decoder, 1, 0, results);
  spread_to_beams(active, decoder, beams);

  bool rebind = true;
  for (int steps = 0; !active.empty(); ++steps) {
    if (rebind) decoder.set_rows(static_cast<int>(active.size()) * beams);
    int row = 0;
    for (const Active& one : active) {
      for (int64_t token : one.search.tokens()) {
        decoder.token(row) = token;
        decoder.set_position(row++, one.prompt_length + steps);
      }
    }
    before_step();
    decoder.step();

    row = 0;
    for (Active& one : active) {
      one.search.advance(decoder.logits(row), beams);
      row += beams;
    }
    rebind = retire(active, decoder, beams, steps + 1, results);
    row = 0;
    for (const Active& one : active) {
      decoder.cache().reorder(row, one.search.parents(), one.prompt_length, one.prompt_length + steps + 1);
      row += beams;
    }
  }
  return results;
}

}  // namespace blip2rt
