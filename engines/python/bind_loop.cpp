// Generations and chats. Turns the loop's results into types that nanobind converts.
#include <nanobind/ndarray.h>

#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "loop/generation.h"
#include "loop/generator.h"
#include "loop/likelihood.h"
#include "python/bind.h"
#include "python/gil.h"
#include "python/python_loop.h"
#include "python/python_types.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace blip2rt {

Prefix borrow_prefix(const Generator& generator, nb::handle prefix_embeds) {
  nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu> prefix;
  const int width = generator.shape().hidden_size;
  if (!nb::try_cast(prefix_embeds, prefix, false) || prefix.shape(2) != static_cast<size_t>(width)) {
    throw std::runtime_error("prefix_embeds must be a C-contiguous float32 array (images, length, " +
                             std::to_string(width) + ")");
  }
  return {prefix.data(), static_cast<int>(prefix.shape(0)), static_cast<int>(prefix.shape(1))};
}

Sequences sequences_of(std::vector<std::vector<Hypothesis>> results) {
  Sequences sequences;
  for (auto& image : results) {
    auto& best = sequences.emplace_back();
    for (Hypothesis& hypothesis : image) best.emplace_back(std::move(hypothesis.tokens), hypothesis.score);
  }
  return sequences;
}

Added added_of(const std::vector<NewToken>& tokens) {
  Added added;
  for (const NewToken& token : tokens) added.emplace_back(token.image, token.draw, token.token);
  return added;
}

namespace {

GenerationOptions options_for(const Generator& generator, nb::handle given) {
  return options_from(given, static_cast<size_t>(generator.shape().vocab_size));
}

// Returns requests that read Python's array, which must outlive them.
std::vector<Request> borrowing_requests(const Generator& generator, nb::handle prefix_embeds, const Prompts& prompts,
                                        nb::handle options) {
  const Prefix prefix = borrow_prefix(generator, prefix_embeds);
  const std::shared_ptr<const float> borrowed(std::shared_ptr<void>(), prefix.data);
  return requests_of(generator, borrowed, prefix, prompts, options_for(generator, options));
}

Sequences generate_all(const Generator& generator, nb::handle prefix_embeds, const Prompts& prompts, nb::handle options,
                       const std::optional<nb::callable>& on_token) {
  std::vector<Request> requests = borrowing_requests(generator, prefix_embeds, prompts, options);
  std::function<bool(const NewToken&)> callback;
  if (on_token) {
    callback = [&on_token](const NewToken& token) {
      const HeldGil held;
      const nb::tuple arguments = nb::make_tuple(token.image, token.draw, token.token);
      PyObject* answer = nullptr;
      while_python_lives([&] { answer = PyObject_CallObject(on_token->ptr(), arguments.ptr()); });
      if (answer == nullptr) throw nb::python_error();
      return !nb::steal(answer).is(nb::handle(Py_False));
    };
  }
  const ReleasedGil released;
  return sequences_of(generate(generator, std::move(requests), SignalCheck(), callback));
}

Sequences rounds_of(const Generator& generator, nb::handle prefix_embeds, const Prompts& prompts,
                    const std::vector<nb::object>& ways) {
  std::vector<std::vector<Request>> rounds;
  for (nb::handle options : ways) {
    rounds.push_back(borrowing_requests(generator, prefix_embeds, prompts, options));
  }
  const ReleasedGil released;
  return sequences_of(generate_rounds(generator, std::move(rounds), SignalCheck()));
}

std::vector<double> likelihoods_of(const Generator& generator, nb::handle prefix_embeds, const Prompts& prompts,
                                   const std::vector<size_t>& images, const Prompts& texts) {
  const Prefix prefix = borrow_prefix(generator, prefix_embeds);
  const ReleasedGil released;
  return likelihoods(generator, prefix, prompts, images, texts, SignalCheck());
}

// A generation, which a chat may share. nanobind's own holder of shared pointers aborts when out of memory.
struct PythonGeneration {
  std::shared_ptr<Generation> held;
};

PythonGeneration begin(const Generator& generator, nb::handle prefix_embeds, const Prompts& prompts,
                       nb::handle options) {
  return {std::make_shared<Generation>(generator, borrowing_requests(generator, prefix_embeds, prompts, options))};
}

Added step(const PythonGeneration& self) {
  Generation& generation = *self.held;
  const Batch::Lock lock(generation.batch());  // until the added tokens are read
  {
    const ReleasedGil released;
    generation.step();
  }
  return added_of(generation.added());
}

// A chat, with the generator that its options are checked against.
struct PythonChat {
  const Generator& generator;
  Chat chat;
};

}  // namespace

void bind_loop(nb::module_& m) {
  nb::class_<PythonGeneration>(m, "Generation")
      .def("step", &step,
           "Choose the next token of each running answer. Return (image, draw, token id) of each settled one.")
      .def("close", [](const PythonGeneration& self) { self.held->close(); })
      .def_prop_ro("done", [](const PythonGeneration& self) { return self.held->done(); })
      .def_prop_ro(
          "seconds",
          [](const PythonGeneration& self) {
            const Batch::Lock lock(self.held->batch());
            return std::pair(self.held->times().steps, self.held->times().graphs);
          },
          "Seconds of all steps after the first, and the part of them that the graphs take.")
      .def("results",
           [](const PythonGeneration& self) {
             const Batch::Lock lock(self.held->batch());
             return sequences_of(self.held->results());
           })
      .def(
          "cut",
          [](const PythonGeneration& self, size_t image, int tokens) {
            const Batch::Lock lock(self.held->batch());
            return self.held->is_cut(image, tokens);
          },
          "image"_a, "tokens"_a);

  nb::class_<Generator>(m, "Generator")
      .def(
          "__init__",
          [](Generator* self, const Session& embed, const Session& llm, int layers, int kv_heads, int head_dim,
             int hidden_size, int vocab_size, const Session* encoder, int64_t decoder_start_token_id) {
            const LlmShape shape = {layers, kv_heads, head_dim, hidden_size, vocab_size};
            new (self) Generator(embed, llm, shape, encoder, decoder_start_token_id);
          },
          "embed"_a, "llm"_a, "layers"_a, "kv_heads"_a, "head_dim"_a, "hidden_size"_a, "vocab_size"_a,
          "encoder"_a = nb::none(), "decoder_start_token_id"_a = 0, nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(),
          nb::keep_alive<1, 9>())
      .def("generate", &generate_all, "prefix_embeds"_a, "prompts"_a, "options"_a = nb::dict(),
           "on_token"_a = nb::none(),
           "Answer B prompts after prefix_embeds (B, Q, D). on_token(image, draw, token id): called for every token of "
           "greedy search and sampling; False ends the call.")
      .def("generate_rounds", &rounds_of, "prefix_embeds"_a, "prompts"_a, "rounds"_a,
           "Answer B prompts with each round's options: B answers of the first round, then of the next. Prompts are "
           "read once, and the rounds share their steps, unless the model is an encoder-decoder or its prompt sees "
           "itself in both directions.")
      .def("begin", &begin, "prefix_embeds"_a, "prompts"_a, "options"_a = nb::dict(), nb::keep_alive<0, 1>(),
           nb::keep_alive<0, 2>())
      .def("likelihoods", &likelihoods_of, "prefix_embeds"_a, "prompts"_a, "images"_a, "texts"_a,
           "Return the sum of each text's log-probabilities after its image: prefix_embeds (B, Q, D), B prompts. "
           "images: the number of each text's image. An image is read once if its texts follow each other.");

  nb::class_<PythonChat>(m, "Chat")
      .def(
          "__init__",
          [](PythonChat* self, const Generator& generator, nb::handle prefix_embeds, int max_rows, int capacity) {
            const Prefix prefix = borrow_prefix(generator, prefix_embeds);
            new (self) PythonChat{generator, Chat(generator, prefix, max_rows, capacity)};
          },
          "generator"_a, "prefix_embeds"_a, "max_rows"_a, "capacity"_a, nb::keep_alive<1, 2>())
      .def(
          "ask",
          [](PythonChat& self, std::vector<int64_t> prompt, nb::handle options) {
            return PythonGeneration{self.chat.ask(std::move(prompt), options_for(self.generator, options))};
          },
          "prompt"_a, "options"_a = nb::dict(), nb::keep_alive<0, 1>())
      .def_prop_ro("positions", [](const PythonChat& self) { return self.chat.positions(); });
}

}  // namespace blip2rt
