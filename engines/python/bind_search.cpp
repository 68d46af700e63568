// The search and its options by name. Knows names and types; search/options.cpp knows which values make sense.
#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "python/bind.h"
#include "python/casters.h"
#include "python/python_loop.h"
#include "python/python_types.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace blip2rt {
namespace {

using Tokens = std::vector<int64_t>;

bool read(nb::handle value, bool& into) { return nb::isinstance<nb::bool_>(value) && nb::try_cast(value, into); }

template <class T>
bool read(nb::handle value, T& into) {
  return !nb::isinstance<nb::bool_>(value) && nb::try_cast(value, into);
}

template <class T>
bool read(nb::handle value, std::vector<T>& into) {
  return nb::detail::read_items(value, into, uint8_t{1}, nullptr);
}

bool read(nb::handle value, EarlyStopping& into) {
  std::string text;
  if (!nb::detail::read_text(value, text)) return false;
  if (text != "true" && text != "false" && text != "never") return false;
  into = text == "true" ? EarlyStopping::kTrue : text == "false" ? EarlyStopping::kFalse : EarlyStopping::kNever;
  return true;
}

bool read(nb::handle value, std::vector<std::string>& into) {
  if (!nb::isinstance<nb::list>(value)) return false;
  for (nb::handle one : nb::cast<nb::list>(value)) {
    if (!nb::isinstance<nb::bytes>(one)) return false;
    const auto bytes = nb::cast<nb::bytes>(one);
    into.emplace_back(bytes.c_str(), bytes.size());
  }
  return true;
}

bool read(nb::handle value, std::shared_ptr<const Vocabulary>& into) {
  const PythonVocabulary* vocabulary = nullptr;
  if (!nb::try_cast(value, vocabulary) || vocabulary == nullptr) return false;
  into = vocabulary->shared;
  return true;
}

bool read(nb::handle value, std::vector<std::shared_ptr<const Guide>>& into) {
  if (!nb::isinstance<nb::list>(value)) return false;
  for (nb::handle one : nb::cast<nb::list>(value)) {
    const PythonGuide* guide = nullptr;
    if (!nb::try_cast(one, guide) || guide == nullptr) return false;
    into.push_back(guide->shared);
  }
  return true;
}

constexpr const char* kNames =
    "num_beams, num_return_sequences, max_new_tokens, min_new_tokens, length_penalty, early_stopping, "
    "repetition_penalty, no_repeat_ngram_size, counts_prompt, image_token_id, bad_words_ids, forced_prefix, "
    "eos_token_ids, stop_strings, vocabulary, "
    "max_time, do_sample, temperature, top_k, top_p, min_p, seed, first_image, guides";

// Reads one option. Returns the fault, or nothing.
std::string read_option(std::string_view name, nb::handle value, GenerationOptions& options) {
  const auto must = [name, value](auto& into, const char* what) {
    return read(value, into) ? std::string() : std::string(name) + " must be " + what;
  };
  constexpr const char *kWhole = "an integer", *kNumber = "a number", *kTokens = "a list of integers";
  if (name == "num_beams") return must(options.num_beams, kWhole);
  if (name == "num_return_sequences") return must(options.num_return_sequences, kWhole);
  if (name == "max_new_tokens") return must(options.max_new_tokens, kWhole);
  if (name == "min_new_tokens") return must(options.min_new_tokens, kWhole);
  if (name == "length_penalty") return must(options.length_penalty, kNumber);
  if (name == "early_stopping") return must(options.early_stopping, "'true', 'false' or 'never'");
  if (name == "repetition_penalty") return must(options.repetition_penalty, kNumber);
  if (name == "no_repeat_ngram_size") return must(options.no_repeat_ngram_size, kWhole);
  if (name == "counts_prompt") return must(options.counts_prompt, "a bool");
  if (name == "image_token_id") return must(options.image_token_id, kWhole);
  if (name == "bad_words_ids") return must(options.bad_words_ids, "a list of lists of integers");
  if (name == "forced_prefix") return must(options.forced_prefix, kTokens);
  if (name == "eos_token_ids") return must(options.eos_token_ids, kTokens);
  if (name == "stop_strings") return must(options.stop_strings, "a list of bytes");
  if (name == "vocabulary") return must(options.vocabulary, "a Vocabulary");
  if (name == "max_time") return must(options.max_time, kNumber);
  if (name == "do_sample") return must(options.do_sample, "a bool");
  if (name == "temperature") return must(options.temperature, kNumber);
  if (name == "top_k") return must(options.top_k, kWhole);
  if (name == "top_p") return must(options.top_p, kNumber);
  if (name == "min_p") return must(options.min_p, kNumber);
  if (name == "seed") return must(options.seed, "an integer from 0 to 2^64 - 1");
  if (name == "guides") return must(options.guides, "a list of Guides");
  if (name == "first_image") return must(options.first_image, "an integer from 0 up");
  return "unknown generation option '" + std::string(name) + "', choose from " + kNames;
}

// Changes options by name. Returns every fault.
template <class Items>
std::string change(GenerationOptions& options, const Items& given) {
  std::string faults;
  for (auto [key, value] : given) {
    std::string name;
    const bool is_name = nb::detail::read_text(key, name);
    const std::string fault = is_name ? read_option(name, value, options) : "an option's name is not a string";
    faults += (faults.empty() || fault.empty() ? "" : "; ") + fault;
  }
  return faults;
}

GenerationOptions changed(GenerationOptions options, const nb::kwargs& given) {
  const std::string faults = change(options, given);
  if (!faults.empty()) throw std::runtime_error("bad generation options: " + faults);
  return options;
}

}  // namespace

GenerationOptions options_from(nb::handle given, size_t vocab_size) {
  GenerationOptions options;
  std::string faults;
  if (!nb::try_cast(given, options)) {
    faults = nb::isinstance<nb::dict>(given) ? change(options, nb::cast<nb::dict>(given)) : "they are no dict";
  }
  const std::string others = options.faults(vocab_size);
  faults += (faults.empty() || others.empty() ? "" : "; ") + others;
  if (!faults.empty()) throw std::runtime_error("bad generation options: " + faults);
  return options;
}

namespace {

using Bytes = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>;

// Returns a view of memory that `owner` keeps alive.
Bytes bytes_of(const void* data, size_t size, nb::handle owner) {
  return Bytes(const_cast<void*>(data), {size}, owner);
}

void bind_guides(nb::module_& m) {
  nb::class_<PythonGuide>(m, "Guide")
      .def(
          "__init__",
          [](PythonGuide* self, const std::vector<TokenText>& texts, const std::vector<float>& rarity, int32_t end) {
            const auto values = std::make_shared<std::vector<float>>(rarity);
            const std::shared_ptr<const float> shared(values, values->data());
            new (self) PythonGuide{std::make_shared<const Guide>(texts, shared, rarity.size(), end)};
          },
          "texts"_a, "rarity"_a, "end"_a,
          "texts: token ids, each followed by `end`; rarity (V): what tokens weigh when texts are compared")
      .def(
          "apply",
          [](const PythonGuide& self, const TokenText& tokens, std::vector<float> logits) {
            if (logits.size() != self.shared->vocab_size())
              throw std::runtime_error("logits must be as many as tokens");
            std::vector<double> scratch(self.shared->scratch_size());
            self.shared->apply(tokens.data(), static_cast<int>(tokens.size()), logits.data(), scratch.data());
            return logits;
          },
          "tokens"_a, "logits"_a, "Logits (V) of the token after others -> guided logits (V)")
      .def(
          "agreement",
          [](const PythonGuide& self, const TokenText& tokens) {
            self.shared->check(tokens);
            return self.shared->agreement(tokens.data(), tokens.size());
          },
          "tokens"_a);

  nb::class_<PythonVocabulary>(m, "Vocabulary")
      .def(
          "__init__",
          [](PythonVocabulary* self, const std::vector<nb::bytes>& tokens) {
            auto made = std::make_shared<Vocabulary>();
            for (const nb::bytes& token : tokens) made->add({token.c_str(), token.size()});
            new (self) PythonVocabulary{std::move(made)};
          },
          "tokens"_a)
      .def("__len__", [](const PythonVocabulary& self) { return self.shared->size(); })
      .def_prop_ro(
          "ends",
          [](nb::handle_t<PythonVocabulary> self) {
            const auto& ends = nb::cast<const PythonVocabulary&>(self).shared->ends();
            return bytes_of(ends.data(), ends.size() * sizeof(ends[0]), self);
          },
          "The bytes of tokens + 1 uint64 numbers: token i has the bytes [ends[i], ends[i + 1]).")
      .def_prop_ro("bytes", [](nb::handle_t<PythonVocabulary> self) {
        const auto& bytes = nb::cast<const PythonVocabulary&>(self).shared->bytes();
        return bytes_of(bytes.data(), bytes.size(), self);
      });

  nb::class_<RepeatedWords>(m, "RepeatedWords")
      .def(
          "__init__",
          [](RepeatedWords* self, const PythonVocabulary& vocabulary) { new (self) RepeatedWords(vocabulary.shared); },
          "vocabulary"_a)
      .def(
          "forbid",
          [](const RepeatedWords& self, const TokenText& tokens, std::vector<float> logits) {
            if (logits.size() != self.vocab_size()) throw std::runtime_error("logits must be as many as tokens");
            self.forbid(tokens.data(), static_cast<int>(tokens.size()), logits.data());
            return logits;
          },
          "tokens"_a, "logits"_a,
          "Logits (V) of the token after others -> the same, minus infinity where a word would be repeated");
}

void bind_options(nb::module_& m) {
  using Options = GenerationOptions;
  nb::class_<Options>(m, "GenerationOptions")
      .def(
          "__init__", [](Options* self, const nb::kwargs& given) { new (self) Options(changed({}, given)); },
          nb::sig("def __init__(self, **given: object) -> None"))
      .def("changed", &changed, nb::sig("def changed(self, **given: object) -> GenerationOptions"))
      .def_ro("num_beams", &Options::num_beams)
      .def_ro("num_return_sequences", &Options::num_return_sequences)
      .def_ro("max_new_tokens", &Options::max_new_tokens)
      .def_ro("min_new_tokens", &Options::min_new_tokens)
      .def_ro("counts_prompt", &Options::counts_prompt)
      .def_ro("image_token_id", &Options::image_token_id)
      .def_ro("forced_prefix", &Options::forced_prefix)
      .def_ro("eos_token_ids", &Options::eos_token_ids)
      .def_ro("max_time", &Options::max_time)
      .def_ro("do_sample", &Options::do_sample)
      .def_ro("first_image", &Options::first_image)
      .def_prop_ro("vocabulary", [](const Options& self) {
        return self.vocabulary == nullptr ? std::nullopt : std::optional(PythonVocabulary{self.vocabulary});
      });
}

}  // namespace

void bind_search(nb::module_& m) {
  bind_guides(m);
  bind_options(m);
}

}  // namespace blip2rt
