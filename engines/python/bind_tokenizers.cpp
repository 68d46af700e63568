// The tokenizers of a bundle.
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/unique_ptr.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "language/text_stream.h"
#include "python/bind.h"
#include "python/gil.h"
#include "python/python_types.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace blip2rt {

Prompt read_prompt(nb::handle source) {
  if (!PyTuple_Check(source.ptr()) || PyTuple_Size(source.ptr()) != 3) return {"", read_caller_text(source).utf8, ""};
  const auto part = [&](Py_ssize_t at) { return read_caller_text(PyTuple_GetItem(source.ptr(), at)).utf8; };
  return {part(0), part(1), part(2)};
}

std::shared_ptr<const Tokenizer> borrowed(const Tokenizer& tokenizer) { return {std::shared_ptr<void>(), &tokenizer}; }

std::vector<std::string> utf8_of(const std::vector<CallerText>& texts) {
  std::vector<std::string> all;
  for (const CallerText& text : texts) all.push_back(text.utf8);
  return all;
}

namespace {

using Matrix = nb::ndarray<nb::numpy, int64_t, nb::ndim<2>>;

Matrix matrix_of(std::vector<int64_t>&& values, size_t rows) {
  auto* kept = new std::vector<int64_t>(std::move(values));
  const nb::capsule owner(kept, [](void* data) noexcept { delete static_cast<std::vector<int64_t>*>(data); });
  return Matrix(kept->data(), {rows, rows == 0 ? 0 : kept->size() / rows}, owner);
}

// Texts -> token_ids and text_mask (B, L).
std::pair<Matrix, Matrix> encode_rows(const QFormerTokenizer& self, const std::vector<CallerText>& texts) {
  std::vector<Ids> rows;
  size_t length = 0;
  {
    const ReleasedGil released;
    for (const CallerText& text : texts) {
      rows.push_back(self.encode(text.utf8));
      length = std::max(length, rows.back().size());
    }
  }
  std::vector<int64_t> ids(rows.size() * length, self.spec().pad_token_id), mask(ids.size(), 0);
  for (size_t row = 0; row < rows.size(); ++row) {
    std::copy(rows[row].begin(), rows[row].end(), ids.begin() + static_cast<ptrdiff_t>(row * length));
    std::fill_n(mask.begin() + static_cast<ptrdiff_t>(row * length), rows[row].size(), 1);
  }
  return {matrix_of(std::move(ids), rows.size()), matrix_of(std::move(mask), rows.size())};
}

void bind_llm_tokenizer(nb::module_& m) {
  nb::class_<LlmTokenizer>(m, "LlmTokenizer")
      .def(
          "__init__",
          [](LlmTokenizer* self, const std::string& file, const Tokenizer& tokenizer, nb::object spec,
             bool special_tokens) {
            new (self) LlmTokenizer(file, borrowed(tokenizer), llm_spec_of(spec), special_tokens);
          },
          "file"_a, "tokenizer"_a, "spec"_a, "special_tokens"_a = true, nb::keep_alive<1, 3>(),
          "file: names the tokenizer in errors. spec: a bundle.manifest.LlmSpec. special_tokens: whether "
          "\"<|im_end|>\" in a caller's text is that token.")
      .def("encode", nb::overload_cast<const Prompt&>(&LlmTokenizer::encode, nb::const_), WithoutGil(), "prompt"_a,
           "A prompt -> its token ids, with the special tokens of the model's prompts. Raises OptionError. A str is a "
           "caller's text without a template.")
      .def("encode_more", &LlmTokenizer::encode_more, WithoutGil(), "prompt"_a)
      .def("decode", &LlmTokenizer::line, "ids"_a)
      .def("text", &LlmTokenizer::text, "ids"_a)
      .def(
          "written",
          [](const LlmTokenizer& self, const Ids& ids) { return self.decode(ids.data(), ids.size(), false); }, "ids"_a)
      .def("shown", &LlmTokenizer::shown, "ids"_a)
      .def_prop_ro(
          "turns",
          [](const LlmTokenizer& self) {
            nb::dict turns;
            for (const auto& [id, name] : self.turns()) turns[nb::int_(id)] = name;
            return turns;
          },
          "Special tokens that begin or end a chat turn, by id, except stop tokens.")
      .def("vocabulary", [](const LlmTokenizer& self) {
        const ReleasedGil released;
        return PythonVocabulary{self.vocabulary()};
      });
}

}  // namespace

void bind_tokenizers(nb::module_& m) {
  m.def(
      "open_tokenizer",
      [](const nb::bytes& file) {
        const std::string path(file.c_str(), file.size());
        const ReleasedGil released;
        return open_tokenizer(path);
      },
      "file"_a);
  bind_llm_tokenizer(m);
  nb::class_<QFormerTokenizer>(m, "QFormerTokenizer")
      .def(
          "__init__",
          [](QFormerTokenizer* self, const std::string& file, const Tokenizer& tokenizer, nb::object spec,
             bool special_tokens) {
            new (self) QFormerTokenizer(file, borrowed(tokenizer), text_spec_of(spec), special_tokens);
          },
          "file"_a, "tokenizer"_a, "spec"_a, "special_tokens"_a = true, nb::keep_alive<1, 3>())
      .def("encode", &encode_rows, "texts"_a,
           "B texts -> token_ids (B, L) int64, text_mask (B, L) int64, 1 for a token and 0 for padding. L is the "
           "longest text's length in tokens; texts too long for the model are cut. Raises OptionError.")
      .def(
          "written", [](const QFormerTokenizer& self, const CallerText& text) { return self.written(text.utf8); },
          "text"_a);
  nb::class_<TextStream>(m, "TextStream")
      .def(nb::init<const LlmTokenizer&, Ids, bool>(), "tokenizer"_a, "given"_a = Ids(), "single_line"_a = false,
           nb::keep_alive<1, 2>())
      .def("push", &TextStream::push, "token_id"_a)
      .def("end", &TextStream::end)
      .def("rest", &TextStream::rest, "text"_a)
      .def_prop_ro("ended", &TextStream::ended);
  nb::class_<StopCut>(m, "StopCut")
      .def(nb::init<std::vector<std::string>>(), "stops"_a)
      .def("push", &StopCut::push, "piece"_a)
      .def(
          "finish",
          [](StopCut& self, const std::optional<std::string>& whole) { return self.finish(whole ? &*whole : nullptr); },
          "whole"_a = nb::none())
      .def_prop_ro("stopped", &StopCut::stopped);
}

}  // namespace blip2rt
