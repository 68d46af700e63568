// The reader of tokenizer.json.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "python/bind.h"
#include "python/casters.h"
#include "python/gil.h"
#include "text/tokenizer.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace blip2rt {
namespace {

using Ids = Tokenizer::Ids;

Ids encode(const Tokenizer& self, const std::vector<std::pair<std::string, bool>>& pieces, bool layout,
           std::optional<size_t> max_tokens) {
  const ReleasedGil released;
  std::vector<TextPiece> texts;
  for (const auto& [text, plain] : pieces) texts.push_back({text, plain});
  return self.encode(texts, layout, max_tokens.value_or(SIZE_MAX));
}

std::vector<nb::bytes> token_bytes(const Tokenizer& self, size_t size) {
  std::vector<nb::bytes> list;
  self.each_token(size, [&](std::string_view text) { list.emplace_back(text.data(), text.size()); });
  return list;
}

std::vector<std::tuple<int64_t, std::string, bool>> added_tokens(const Tokenizer& self) {
  std::vector<std::tuple<int64_t, std::string, bool>> tokens;
  for (const AddedToken& token : self.added_tokens()) tokens.emplace_back(token.id, token.content, token.special);
  return tokens;
}

}  // namespace

void bind_text(nb::module_& m) {
  nb::class_<Tokenizer>(m, "Tokenizer")
      .def(
          "__init__",
          [](Tokenizer* self, const nb::bytes& json) {
            std::string bytes(json.c_str(), json.size());
            const ReleasedGil released;
            new (self) Tokenizer(std::move(bytes));
          },
          "json"_a)
      .def("encode", &encode, "pieces"_a, "layout"_a, "max_tokens"_a = nb::none(),
           "Return the ids of consecutive (text, whether special tokens in it are plain text). layout: add the tokens "
           "around a text, such as [CLS] ... [SEP]. Raises RuntimeError if a text has no ids.")
      .def("decode", nb::overload_cast<const Ids&, bool>(&Tokenizer::decode, nb::const_), WithoutGil(), "ids"_a,
           "skip_special"_a)
      .def("token_bytes", &token_bytes, "size"_a,
           "Return the bytes that tokens 0 to size - 1 add to a text; special tokens add their names.")
      .def_prop_ro("added_tokens", &added_tokens, "Added tokens by id: (id, text, whether it is special).");
}

}  // namespace blip2rt
