// The language side without graphs: statements, forms of texts, callers' options, prompts, and chats.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "english/answer_words.h"
#include "english/questions.h"
#include "english/statements.h"
#include "english/text_forms.h"
#include "language/dialogue.h"
#include "python/bind.h"
#include "python/python_types.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace blip2rt {
namespace {

using Texts = std::vector<CallerText>;

std::string shown(nb::handle object) {
  std::string text;
  if (nb::detail::read_text(nb::repr(object), text)) return text;
  return nb::cast<std::string>(nb::steal(PyObject_ASCII(object.ptr())));
}

// A whole number that does not fit is a large one.
void read_number(nb::handle object, OptionValue& into) {
  if (PyIndex_Check(object.ptr())) {
    const nb::object whole = nb::steal(PyNumber_Index(object.ptr()));
    if (whole.is_valid()) {
      int overflow = 0;
      const long long value = PyLong_AsLongLongAndOverflow(whole.ptr(), &overflow);
      if (overflow == 0) {
        into.value = static_cast<int64_t>(value);
        return;
      }
      const double large = PyLong_AsDouble(whole.ptr());
      if (!PyErr_Occurred()) into.value = large;
    }
  } else if (PyObject_HasAttrString(object.ptr(), "__float__") != 0) {
    const nb::object number = nb::steal(PyNumber_Float(object.ptr()));
    if (number.is_valid()) into.value = PyFloat_AsDouble(number.ptr());
  }
  PyErr_Clear();
}

OptionValue option_of(nb::handle object) {
  OptionValue given{{}, shown(object)};
  std::string text;
  if (PyBool_Check(object.ptr())) {
    given.value = object.is(nb::handle(Py_True));
  } else if (nb::detail::read_text(object, text)) {
    given.value = std::move(text);
  } else if (PyList_Check(object.ptr()) || PyTuple_Check(object.ptr())) {
    std::vector<std::string> texts;
    if (nb::try_cast(object, texts)) given.value = std::move(texts);
  } else {
    read_number(object, given);
  }
  return given;
}

// Options by name; None is no option.
CallerOptions options_of(const std::map<std::string, nb::object>& given, const CallerOptions* defaults, bool captions) {
  const std::vector<std::string> names = CallerOptions::names(captions);
  CallerOptions::Values values;
  std::vector<std::string> unknown;
  for (const auto& [name, value] : given) {
    if (std::find(names.begin(), names.end(), name) == names.end()) {
      unknown.push_back(name);
    } else if (name == "pool" && PyObject_HasAttrString(value.ptr(), "__fspath__") != 0) {
      values.emplace(name, option_of(nb::steal(PyOS_FSPath(value.ptr()))));
    } else if (!value.is_none()) {
      values.emplace(name, option_of(value));
    }
  }
  return {std::move(values), std::move(unknown), defaults == nullptr ? CallerOptions() : *defaults, captions};
}

// Reads a blip2rt.bundle.manifest.Manifest.
LanguageSpec language_spec_of(nb::handle manifest) {
  LanguageSpec spec;
  spec.name = nb::cast<std::string>(manifest.attr("name"));
  spec.prompts = nb::cast<std::map<std::string, std::string>>(manifest.attr("prompts"));
  for (const auto& [task, given] : nb::cast<std::map<std::string, nb::object>>(manifest.attr("decoding"))) {
    const auto whole = [&given = given](const char* name) { return nb::cast<int64_t>(given.attr(name)); };
    spec.decoding[task] = {whole("num_beams"), whole("max_new_tokens"), whole("min_new_tokens"),
                           nb::cast<double>(given.attr("length_penalty")),
                           nb::cast<bool>(given.attr("no_repeat_words"))};
  }
  const nb::object question = manifest.attr("question");
  if (!question.is_none()) spec.question = nb::cast<std::string>(question.attr("prompt"));
  return spec;
}

using TextTuple = std::tuple<std::string, double, Ids, bool>;

void bind_prompts(nb::class_<Language>& bound) {
  bound
      .def(
          "caption_prompt",
          [](const Language& self, const std::optional<CallerText>& prompt) {
            return self.caption_prompt(prompt ? &prompt->utf8 : nullptr);
          },
          "prompt"_a.none())
      .def(
          "ask_prompt", [](const Language& self, const CallerText& question) { return self.ask_prompt(question.utf8); },
          "question"_a)
      .def(
          "qformer_question",
          [](const Language& self, const CallerText& question) { return self.qformer_question(question.utf8); },
          "question"_a)
      .def(
          "plain_question",
          [](const Language& self, const CallerText& question) { return self.plain_question(question.utf8); },
          "question"_a)
      .def_prop_ro("next_question", &Language::next_question)
      .def(
          "caption_tokens",
          [](const Language& self, const Texts& texts, int64_t prefix_length, int64_t max_tokens) {
            return self.caption_tokens(utf8_of(texts), prefix_length, max_tokens);
          },
          "texts"_a, "prefix_length"_a, "max_tokens"_a)
      .def(
          "answer_tokens",
          [](const Language& self, const Texts& questions, const Texts& answers) {
            return self.answer_tokens(utf8_of(questions), utf8_of(answers));
          },
          "questions"_a, "answers"_a);
}

void bind_model(nb::module_& m) {
  nb::class_<Language> bound(m, "Language");
  bound
      .def(
          "__init__",
          [](Language* self, const std::string& file, const Tokenizer& tokenizer, nb::object manifest,
             bool special_tokens) {
            new (self) Language(language_spec_of(manifest), file, borrowed(tokenizer),
                                llm_spec_of(manifest.attr("llm")), special_tokens);
          },
          "file"_a, "tokenizer"_a, "manifest"_a, "special_tokens"_a = true, nb::keep_alive<1, 3>())
      .def_prop_ro("tokenizer", &Language::tokenizer)
      .def("settings", &Language::settings, WithoutGil(), "task"_a, "options"_a, "prompts"_a, "used"_a = 0,
           "Options for a task (\"caption\", \"ask\") and the prompts that it continues. Raises OptionError with every "
           "fault. used: positions that a conversation has taken, besides the image's and the prompts'.")
      .def("forced_prefix", &Language::forced_prefix, "options"_a, "after_prompt"_a)
      .def(
          "text_of",
          [](const Language& self, const Ids& token_ids, double score, const GenerationOptions& options,
             bool single_line, bool timed_out) -> TextTuple {
            Text text = self.text_of(token_ids, score, options, single_line, timed_out);
            return {std::move(text.text), text.score, std::move(text.tokens), text.truncated};
          },
          WithoutGil(), "token_ids"_a, "score"_a, "options"_a, "single_line"_a = false, "timed_out"_a = false,
          "A generated text: (text, score, tokens, truncated), as in blip2rt.Scored. timed_out: max_time ended it.")
      .def("need_guidable", &Language::need_guidable, "prompt"_a)
      .def("need_chat", &Language::need_chat);
  bind_prompts(bound);
}

void bind_dialogue(nb::module_& m) {
  using Turn = Dialogue::Turn;
  nb::class_<Turn>(m, "Turn")
      .def_prop_ro("prompt", [](const Turn& self) { return self.task.prompt; })
      .def_prop_ro("options", [](const Turn& self) { return self.task.options; })
      .def_prop_ro("until", [](const Turn& self) { return self.task.until; })
      .def_prop_ro(
          "token_ids", [](const Turn& self) { return self.ids; },
          "Of the question, and of what was said before and never read.");
  nb::class_<Dialogue>(m, "Dialogue")
      .def(nb::init<const Language&, CallerOptions, bool>(), "language"_a, "options"_a, "rewords"_a,
           nb::keep_alive<1, 2>())
      .def_prop_ro("max_beams", &Dialogue::max_beams)
      .def(
          "begin",
          [](const Dialogue& self, const CallerText& question, const CallerOptions& options) {
            return self.begin(question.utf8, options);
          },
          "question"_a, "options"_a)
      .def("read", &Dialogue::read, "turn"_a)
      .def("answered", &Dialogue::answered, "turn"_a, "answer"_a)
      .def("add_answer", &Dialogue::add_answer, "tokens"_a);
}

}  // namespace

namespace {

const char* name_of(ShortQuestion::Kind kind) {
  switch (kind) {
    case ShortQuestion::Kind::kPresence: return "presence";
    case ShortQuestion::Kind::kStatement: return "statement";
    case ShortQuestion::Kind::kColour: return "colour";
    case ShortQuestion::Kind::kNumber: return "number";
    case ShortQuestion::Kind::kChoice: return "choice";
    case ShortQuestion::Kind::kFixed: return "fixed";
  }
  return "";
}

}  // namespace

void bind_language(nb::module_& m) {
  m.def("asks_for_plural", &asks_for_plural, "question"_a);
  nb::class_<ShortQuestion>(m, "ShortQuestion")
      .def_prop_ro(
          "kind", [](const ShortQuestion& question) { return name_of(question.kind); },
          "What `text` is: presence (\"a dog\"), statement (\"a dog is swimming\"), colour (\"what color is the "
          "dog?\"), number (\"how many dogs are there?\"), choice (a question that names its answers), or fixed (the "
          "answer).")
      .def_ro("text", &ShortQuestion::text)
      .def_ro("subject", &ShortQuestion::subject)
      .def_ro("negated", &ShortQuestion::negated, "Whether a yes says that it is not so.")
      .def_ro("choices", &ShortQuestion::choices);
  m.def(
      "short_question", [](const CallerText& question) { return short_question(question.utf8); }, "question"_a,
      "Read a question; None if its answer must be generated.");
  m.def("phrase_of", [](const CallerText& question) { return phrase_of(question.utf8); }, "question"_a);
  m.def("is_phrase", [](const CallerText& text) { return is_phrase(text.utf8); }, "text"_a);
  m.def("question_of", [](const CallerText& phrase) { return question_of(phrase.utf8); }, "phrase"_a);
  m.def("with_article", [](const CallerText& phrase) { return with_article(phrase.utf8); }, "phrase"_a);
  m.def("without_article", [](const CallerText& phrase) { return without_article(phrase.utf8); }, "phrase"_a);
  m.def("plural_of", [](const CallerText& noun) { return plural_of(noun.utf8); }, "noun"_a);
  m.def("tidied", [](const CallerText& text) { return tidied(text.utf8); }, "text"_a);
  m.def("cleaned_up", [](const CallerText& text) { return cleaned_up(text.utf8); }, "text"_a);
  m.def("has_words", [](const CallerText& text) { return has_words(text.utf8); }, "text"_a);
  m.def("clean_caption", [](const CallerText& text) { return clean_caption(text.utf8); }, "text"_a);
  nb::class_<CallerOptions>(m, "CallerOptions")
      .def(
          "__init__",
          [](CallerOptions* self, const std::map<std::string, nb::object>& given, const CallerOptions* defaults,
             bool captions) { new (self) CallerOptions(options_of(given, defaults, captions)); },
          "given"_a, "defaults"_a = nb::none(), "captions"_a = false,
          "Options by name, over `defaults`; None is not given. captions: also raw and pool. Raises OptionError for "
          "unknown names, which also lists the faults of the others.")
      .def_prop_ro("raw", &CallerOptions::raw)
      .def_prop_ro(
          "pool",
          [](const CallerOptions& self) {
            std::string pool = self.pool();
            return pool.empty() ? std::nullopt : std::optional(std::move(pool));
          },
          "A file, \"none\" for no pool, or None for the bundle's.");
  bind_model(m);
  bind_dialogue(m);
}

}  // namespace blip2rt
