#include "text/parts.h"

#include "base/unicode.h"
#include "base/utf8.h"
#include "text/tokenizer_types.h"

namespace blip2rt {
namespace {

// Adds the ids around the text that one processor adds; a tokenizer has at most one that does.
void extend(Layout& layout, Json state, int& adding) {
  const std::string_view type = state["type"].text();
  if (type == "Sequence") return for_each_item(state["processors"], [&](Json each) { extend(layout, each, adding); });
  if (type == "ByteLevel") return;
  if (++adding > 1) unknown_part("two post-processors that add tokens");
  if (type == "BertProcessing" || type == "RobertaProcessing") {
    layout.before = {(*++state["cls"].begin()).whole()};
    layout.after = {(*++state["sep"].begin()).whole()};
    return;
  }
  if (type != "TemplateProcessing") unknown_part("the post-processor " + quoted(type));
  layout.has_text = false;
  size_t pieces = 0;
  for_each_item(state["single"], [&](Json piece) {
    const bool is_text = static_cast<bool>(piece["Sequence"]);
    if ((is_text && layout.has_text) || ++pieces > 64) {
      throw TokenizerError(TokenizerError::kUnsafe, "its post_processor repeats the text");
    }
    if (is_text) {
      if (piece["Sequence"]["id"].text() != "A") unknown_part("a template of two texts");
      layout.has_text = true;
      return;
    }
    const std::string_view name = piece["SpecialToken"]["id"].text();
    const Json token = state["special_tokens"][name];
    if (!token) unknown_part("a template with the undefined token " + quoted(name));
    auto& ids = layout.has_text ? layout.after : layout.before;
    for_each_item(token["ids"], [&](Json id) { ids.push_back(id.whole()); });
  });
}

}  // namespace

Layout layout_from(Json state) {
  Layout layout;
  int adding = 0;
  if (state) extend(layout, state, adding);
  return layout;
}

uint32_t letter_of(uint8_t byte) {
  if ((byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD)) return byte;
  return 0x100u + (byte <= 0x20 ? byte : byte == 0xAD ? 67u : byte - 0x7Fu + 33u);
}

int byte_of(uint32_t letter) {
  if (letter < 0x100) return letter_of(static_cast<uint8_t>(letter)) == letter ? static_cast<int>(letter) : -1;
  const uint32_t rank = letter - 0x100;
  if (rank > 67) return -1;
  return static_cast<int>(rank <= 32 ? rank : rank == 67 ? 0xAD : rank - 33 + 0x7F);
}

bool append_bytes(std::string_view token, std::string& to) {
  const size_t start = to.size();
  for (size_t at = 0; at < token.size();) {
    const int byte = byte_of(next_character(token, at));
    if (byte < 0) {
      to.resize(start);
      return false;
    }
    to += static_cast<char>(byte);
  }
  return true;
}

int byte_token(std::string_view token) {
  if (token.size() != 6 || token.compare(0, 3, "<0x") != 0 || token[5] != '>') return -1;
  const auto digit = [](char c) {
    return c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
  };
  const int high = /* Rust reads a sign, too */ token[3] == '+' ? 0 : digit(token[3]), low = digit(token[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

bool flag_or(Json value, bool otherwise) { return value ? value.flag() : otherwise; }

void unknown_part(const std::string& what) { throw TokenizerError(TokenizerError::kUnknown, what); }

void for_each_item(Json array, const std::function<void(Json)>& change) {
  if (array.kind() != Json::kArray) unknown_part("a list that is none");
  for (const Json each : array) change(each);
}

}  // namespace blip2rt
