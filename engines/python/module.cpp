// The module blip2rt._native: the core as Python sees it. Checks arguments, releases the GIL and handles Ctrl-C.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <functional>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>

#include "graphs/graph_file.h"
#include "graphs/session.h"
#include "kernel_sources.h"
#include "language/answer_words.h"
#include "loop/generation.h"
#include "loop/generator.h"
#include "loop/likelihood.h"
#include "ort/active_call.h"
#include "ort/ort_api.h"
#include "python/abort_notice.h"
#include "python/bind.h"
#include "python/casters.h"
#include "python/errors.h"
#include "python/gil.h"
#include "python/python_batcher.h"
#include "python/python_image.h"
#include "python/python_loop.h"
#include "python/python_options.h"
#include "python/python_tensors.h"
#include "python/python_tokenizer.h"
#include "runtime/caption_pool.h"
#include "search/search_batch.h"
#include "text/tokenizer.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace blip2rt {
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

struct PythonPool {
  std::shared_ptr<const CaptionPool> shared;
};

using Bytes = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>;

// Returns a view of memory that `owner` keeps alive.
Bytes bytes_of(const void* data, size_t size, nb::handle owner) {
  return Bytes(const_cast<void*>(data), {size}, owner);
}

nb::dict plan_of(const SearchBatch& batch) {
  const GenerationOptions& options = batch.options();
  nb::list images;
  for (size_t answer = 0; answer < batch.answers(); ++answer) images.append(batch.image(answer));
  nb::dict plan;
  plan["images"] = images;
  plan["beams"] = options.num_beams;
  plan["stride"] = batch.stride();
  plan["max_new_tokens"] = options.max_new_tokens;
  plan["max_time"] = options.max_time;
  plan["samples"] = options.do_sample;
  plan["draw_bytes"] = sizeof(SampledRow);
  plan["reads_text"] = !options.stop_strings.empty();
  return plan;
}

// A chat, with the generator that its options are checked against.
struct PythonChat {
  const Generator& generator;
  Chat chat;
};

using PortTuple = std::tuple<std::string, std::string, std::vector<int64_t>>;

std::vector<PortTuple> port_tuples(const std::vector<Port>& ports) {
  std::vector<PortTuple> tuples;
  for (const Port& port : ports) tuples.emplace_back(port.name, dtype_name(port.tensor.dtype), port.tensor.shape);
  return tuples;
}

// A handle for ONNX Runtime, which load_onnxruntime has loaded for the process.
struct Runtime {};

}  // namespace
}  // namespace blip2rt

NB_MODULE(_native, m) {
  using namespace blip2rt;
  m.doc() = "ONNX Runtime sessions and the generation loop";
  nb::set_leak_warnings(false);  // a daemon thread may hold a model when the interpreter ends
  nb::register_exception_translator(&translate_error);
  nb::exception<GraphError>(m, "GraphError", nb::module_::import_("blip2rt.errors").attr("BundleError"));
  Py_AtExit(wait_for_calls);

  m.def("kernels", [] {
    nb::dict headers;
    for (const KernelSource& header : kKernelHeaders) headers[header.name] = header.text;
    return std::pair<std::string, nb::dict>(kKernels.text, headers);
  });

  m.def("processor_kernels", &processor_kernels);
  m.def("kernel_levels", &kernel_levels);
  m.def("missing_instructions", &missing_instructions);
  m.def("announce_abort", &announce_abort, "descriptor"_a, "line"_a);
  m.def(
      "check_graph",
      [](const std::string& graph_path, const AllowedFiles& files, bool trusted) {
        const ReleasedGil released;
        read_graph(graph_path, files, trusted ? OperatorRules::kTrusted : OperatorRules::kEveryEngine);
      },
      "graph_path"_a, "files"_a = nb::none(), "trusted"_a = false);

  nb::class_<Runtime>(m, "Runtime")
      .def(
          "__init__",
          [](Runtime* self, const std::string& library_path) {
            load_onnxruntime(library_path);
            new (self) Runtime();
          },
          "library_path"_a)
      .def_prop_ro("version", [](const Runtime&) { return ort_version(); });

  nb::class_<Session>(m, "Session")
      .def(
          "__init__",
          [](Session* self, const Runtime&, const std::string& graph_path, int intra_op_threads, bool custom_int4,
             bool custom_int8, bool custom_attention, const AllowedFiles& files, bool trusted) {
            const ReleasedGil released;
            const CustomOps ops = {custom_int4, custom_int8, custom_attention};
            new (self) Session(graph_path, intra_op_threads, ops, files, trusted);
          },
          "runtime"_a, "graph_path"_a, "intra_op_threads"_a = 0, "custom_int4"_a = true, "custom_int8"_a = false,
          "custom_attention"_a = true, "files"_a = nb::none(), "trusted"_a = false)
      .def_prop_ro("inputs", [](const Session& self) { return port_tuples(self.inputs()); })
      .def_prop_ro("outputs", [](const Session& self) { return port_tuples(self.outputs()); })
      .def_prop_ro("custom_kernels", [](const Session& self) { return self.custom_kernels(); })
      .def("release_weights", &Session::release_weights)
      .def("run", &run, "feeds"_a, "outputs"_a = nb::none());

  nb::class_<PythonResize>(m, "Resize")
      .def(nb::init<std::pair<size_t, size_t>, std::pair<size_t, size_t>, const std::string&>(), "from_size"_a,
           "to_size"_a, "filter"_a)
      .def("add", &PythonResize::add, "rows"_a)
      .def("add_lent", &PythonResize::add_lent, "schema"_a, "rows"_a)
      .def("result", &PythonResize::result);

  nb::class_<PythonGuide>(m, "Guide")
      .def(
          "__init__",
          [](PythonGuide* self, const std::vector<TokenText>& texts, const std::vector<float>& rarity, int32_t end) {
            const auto values = std::make_shared<std::vector<float>>(rarity);
            const std::shared_ptr<const float> shared(values, values->data());
            new (self) PythonGuide{std::make_shared<const Guide>(texts, shared, rarity.size(), end)};
          },
          "texts"_a, "rarity"_a, "end"_a)
      .def(
          "apply",
          [](const PythonGuide& self, const TokenText& tokens, std::vector<float> logits) {
            if (logits.size() != self.shared->vocab_size())
              throw std::runtime_error("logits must be as many as tokens");
            std::vector<double> scratch(self.shared->scratch_size());
            self.shared->apply(tokens.data(), static_cast<int>(tokens.size()), logits.data(), scratch.data());
            return logits;
          },
          "tokens"_a, "logits"_a)
      .def(
          "agreement",
          [](const PythonGuide& self, const TokenText& tokens) {
            self.shared->check(tokens);
            return self.shared->agreement(tokens.data(), tokens.size());
          },
          "tokens"_a);

  using Embeds = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
  nb::class_<PythonPool>(m, "CaptionPool")
      .def(
          "__init__",
          [](PythonPool* self, const std::string& path) {
            const ReleasedGil released;
            new (self) PythonPool{CaptionPool::open(path)};
          },
          "path"_a)
      .def_static(
          "of_bytes",
          [](const nb::bytes& data) { return PythonPool{CaptionPool::of_bytes({data.c_str(), data.size()})}; },
          "data"_a)
      .def_static(
          "pack",
          [](const std::string& fingerprint, const Embeds& projection, const Embeds& codes,
             const std::vector<TokenText>& texts, size_t vocab_size) {
            const auto values = [](const Embeds& array) {
              return std::vector<float>(array.data(), array.data() + array.size());
            };
            const std::string file = CaptionPool::pack(
                {fingerprint, projection.shape(0), vocab_size, values(projection), values(codes), texts});
            return nb::bytes(file.data(), file.size());
          },
          "fingerprint"_a, "projection"_a.noconvert(), "codes"_a.noconvert(), "texts"_a, "vocab_size"_a)
      .def_static(
          "with_fingerprint",
          [](const nb::bytes& data, const std::string& fingerprint) {
            const std::string file = CaptionPool::with_fingerprint({data.c_str(), data.size()}, fingerprint);
            return nb::bytes(file.data(), file.size());
          },
          "data"_a, "fingerprint"_a)
      .def_static(
          "is_pool",
          [](const nb::bytes& beginning) { return CaptionPool::is_pool({beginning.c_str(), beginning.size()}); },
          "beginning"_a)
      .def_prop_ro("fingerprint", [](const PythonPool& self) { return std::string(self.shared->fingerprint()); })
      .def("__len__", [](const PythonPool& self) { return self.shared->size(); })
      .def(
          "nearest",
          [](const PythonPool& self, const Embeds& image_embeds) {
            return self.shared->nearest(image_embeds.data(), image_embeds.shape(0), image_embeds.shape(1));
          },
          "image_embeds"_a.noconvert())
      .def(
          "guide",
          [](const PythonPool& self, const Embeds& image_embeds, int64_t end) {
            const ReleasedGil released;
            return PythonGuide{
                self.shared->guide(image_embeds.data(), image_embeds.shape(0), image_embeds.shape(1), end)};
          },
          "image_embeds"_a.noconvert(), "end"_a)
      .def(
          "answer_guide",
          [](const PythonPool& self, const Embeds& image_embeds, const std::string& question, const TokenText& asked,
             const PythonVocabulary* vocabulary) {
            const ReleasedGil released;
            return PythonGuide{self.shared->answer_guide(image_embeds.data(), image_embeds.shape(0),
                                                         image_embeds.shape(1), question, asked,
                                                         vocabulary == nullptr ? nullptr : vocabulary->shared.get())};
          },
          "image_embeds"_a.noconvert(), "question"_a, "asked"_a, "vocabulary"_a.none());

  m.def("asks_for_plural", &asks_for_plural, "question"_a);

  nb::class_<PythonVocabulary>(m, "Vocabulary")
      .def(
          "__init__",
          [](PythonVocabulary* self, const std::vector<nb::bytes>& tokens) {
            std::vector<std::string> texts;
            for (const nb::bytes& token : tokens) texts.emplace_back(token.c_str(), token.size());
            new (self) PythonVocabulary{std::make_shared<const Vocabulary>(texts)};
          },
          "tokens"_a)
      .def("__len__", [](const PythonVocabulary& self) { return self.shared->size(); })
      .def_prop_ro("ends",
                   [](nb::handle_t<PythonVocabulary> self) {
                     const auto& ends = nb::cast<const PythonVocabulary&>(self).shared->ends();
                     return bytes_of(ends.data(), ends.size() * sizeof(ends[0]), self);
                   })
      .def_prop_ro("bytes", [](nb::handle_t<PythonVocabulary> self) {
        const auto& bytes = nb::cast<const PythonVocabulary&>(self).shared->bytes();
        return bytes_of(bytes.data(), bytes.size(), self);
      });

  nb::class_<SearchBatch>(m, "SearchBatch")
      .def(
          "__init__",
          [](SearchBatch* self, size_t images, const std::vector<int64_t>& given, size_t vocab_size, nb::handle options,
             const std::vector<std::vector<int64_t>>& before) {
            new (self) SearchBatch(images, given, vocab_size, options_from(options, vocab_size), before);
          },
          "images"_a, "given"_a, "vocab_size"_a, "options"_a, "before"_a = std::vector<std::vector<int64_t>>())
      .def_prop_ro("memory",
                   [](nb::handle_t<SearchBatch> self) {
                     const auto& memory = nb::cast<SearchBatch&>(self).memory();
                     return bytes_of(memory.data(), memory.size() * sizeof(memory[0]), self);
                   })
      .def_prop_ro("plan", &plan_of)
      .def_prop_ro("options", &SearchBatch::options)
      .def(
          "advance",
          [](SearchBatch& self, nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu> scores, bool last) {
            self.advance(scores.data(), last);
          },
          "scores"_a.noconvert(), "last"_a = false)
      .def("check", &SearchBatch::check)
      .def_prop_ro("done", &SearchBatch::done)
      .def("added", [](SearchBatch& self) { return added_of(self.added()); })
      .def("results", [](const SearchBatch& self) { return sequences_of(self.results()); });

  nb::class_<PythonGeneration>(m, "Generation")
      .def("step", &step)
      .def("close", [](const PythonGeneration& self) { self.held->close(); })
      .def_prop_ro("done", [](const PythonGeneration& self) { return self.held->done(); })
      .def_prop_ro("seconds",
                   [](const PythonGeneration& self) {
                     const Batch::Lock lock(self.held->batch());
                     return std::pair(self.held->times().steps, self.held->times().graphs);
                   })
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
             int hidden_size, int vocab_size, const Session* encoder, int64_t decoder_start_token_id,
             bool bidirectional_prompt) {
            const LlmShape shape = {layers, kv_heads, head_dim, hidden_size, vocab_size, bidirectional_prompt};
            new (self) Generator(embed, llm, shape, encoder, decoder_start_token_id);
          },
          "embed"_a, "llm"_a, "layers"_a, "kv_heads"_a, "head_dim"_a, "hidden_size"_a, "vocab_size"_a,
          "encoder"_a = nb::none(), "decoder_start_token_id"_a = 0, "bidirectional_prompt"_a = false,
          nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(), nb::keep_alive<1, 9>())
      .def("generate", &generate_all, "prefix_embeds"_a, "prompts"_a, "options"_a = nb::dict(),
           "on_token"_a = nb::none())
      .def("generate_rounds", &rounds_of, "prefix_embeds"_a, "prompts"_a, "rounds"_a)
      .def("begin", &begin, "prefix_embeds"_a, "prompts"_a, "options"_a = nb::dict(), nb::keep_alive<0, 1>(),
           nb::keep_alive<0, 2>())
      .def("likelihoods", &likelihoods_of, "prefix_embeds"_a, "prompts"_a, "images"_a, "texts"_a);

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

  add_batcher(m);
  add_tokenizer(m);
  bind_bundle(m);
  bind_options(m);
  bind_language(m);
  bind_matching(m);
  bind_tokenizers(m);
}
