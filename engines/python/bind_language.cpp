// What the language side knows without a model: statements and forms of texts.
#include "model/statements.h"
#include "model/text_forms.h"
#include "python/bind.h"
#include "python/casters.h"
#include "python/errors.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace blip2rt {

void bind_language(nb::module_& m) {
  m.def("phrase_of", [](const CallerText& question) { return phrase_of(question.utf8); }, "question"_a);
  m.def("number_question", [](const CallerText& question) { return number_question(question.utf8); }, "question"_a);
  m.def("is_phrase", [](const CallerText& text) { return is_phrase(text.utf8); }, "text"_a);
  m.def("question_of", [](const CallerText& phrase) { return question_of(phrase.utf8); }, "phrase"_a);
  m.def("with_article", [](const CallerText& phrase) { return with_article(phrase.utf8); }, "phrase"_a);
  m.def("without_article", [](const CallerText& phrase) { return without_article(phrase.utf8); }, "phrase"_a);
  m.def("plural_of", [](const CallerText& noun) { return plural_of(noun.utf8); }, "noun"_a);
  m.def("tidied", [](const CallerText& text) { return tidied(text.utf8); }, "text"_a);
  m.def("cleaned_up", [](const CallerText& text) { return cleaned_up(text.utf8); }, "text"_a);
  m.def("clean_caption", [](const CallerText& text) { return clean_caption(text.utf8); }, "text"_a);
}

}  // namespace blip2rt
