#include <algorithm>

#include "base/unicode.h"
#include "base/utf8.h"
#include "text/parts.h"
#include "text/tokenizer_types.h"

namespace blip2rt {
namespace {

using Tokens = std::vector<std::string>;

constexpr std::string_view kInvalid = "\xEF\xBF\xBD";  // U+FFFD

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  if (from.empty()) unknown_part("an empty pattern");
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
}

// Replaces invalid bytes, one mark for each longest start of a character.
std::string valid_utf8(const std::string& bytes) {
  std::string text;
  for (size_t at = 0; at < bytes.size();) {
    const auto first = static_cast<uint8_t>(bytes[at]);
    const size_t size = first < 0x80   ? 1
                        : first < 0xC2 ? 0
                        : first < 0xE0 ? 2
                        : first < 0xF0 ? 3
                        : first < 0xF5 ? 4
                                       : 0;
    const uint8_t low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
    const uint8_t high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    size_t end = at + 1;
    for (; end < at + size && end < bytes.size(); ++end) {
      const auto next = static_cast<uint8_t>(bytes[end]);
      if (next < (end == at + 1 ? low : 0x80) || next > (end == at + 1 ? high : 0xBF)) break;
    }
    text += end - at == size ? std::string_view(bytes).substr(at, size) : kInvalid;
    at = end;
  }
  return text;
}

void byte_level(Tokens& tokens) {
  std::string bytes;
  for (const std::string& token : tokens) {
    if (!append_bytes(token, bytes)) bytes += token;
  }
  tokens = {valid_utf8(bytes)};
}

// Joins runs of byte tokens; each byte of a run that is not UTF-8 becomes U+FFFD.
void byte_fallback(Tokens& tokens) {
  Tokens result;
  std::string run;
  const auto flush = [&] {
    if (is_utf8(run)) {
      if (!run.empty()) result.push_back(run);
    } else {
      for (size_t i = 0; i < run.size(); ++i) result.emplace_back(kInvalid);
    }
    run.clear();
  };
  for (std::string& token : tokens) {
    const int byte = byte_token(token);
    if (byte >= 0) {
      run += static_cast<char>(byte);
      continue;
    }
    flush();
    result.push_back(std::move(token));
  }
  flush();
  tokens = std::move(result);
}

void clean_up(std::string& text) {
  constexpr std::string_view kPairs[][2] = {{" .", "."},   {" ?", "?"},     {" !", "!"},    {" ,", ","},
                                            {" ' ", "'"},  {" n't", "n't"}, {" 'm", "'m"},  {" do not", " don't"},
                                            {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
  for (const auto& [from, to] : kPairs) replace_all(text, from, to);
}

Decoder word_piece_from(Json state) {
  const std::string prefix(state["prefix"].text());
  const bool cleans = state["cleanup"].flag();
  return {[=](Tokens& tokens) {
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (i > 0 && tokens[i].compare(0, prefix.size(), prefix) == 0) {
        tokens[i].erase(0, prefix.size());
      } else if (i > 0) {
        tokens[i].insert(0, " ");
      }
      if (cleans) clean_up(tokens[i]);
    }
  }};
}

Decoder metaspace_from(Json state) {
  const std::string mark(state["replacement"].text());
  const Json scheme = state["prepend_scheme"];
  if (count_characters(mark) != 1) unknown_part("a Metaspace with " + quoted(mark));
  const bool keeps = scheme && scheme.text() == "never";
  return {[=](Tokens& tokens) {
    for (size_t i = 0; i < tokens.size(); ++i) replace_all(tokens[i], mark, i == 0 && !keeps ? "" : " ");
  }};
}

Decoder strip_from(Json state) {
  const std::string content(state["content"].text());
  const size_t start = state["start"].whole();
  if (count_characters(content) != 1 || state["stop"].whole() != 0) unknown_part("a Strip with " + quoted(content));
  return {[=](Tokens& tokens) {
    for (std::string& token : tokens) {
      size_t begin = 0;
      for (size_t i = 0; i < start && token.compare(begin, content.size(), content) == 0; ++i) begin += content.size();
      token.erase(0, begin);
    }
  }};
}

Decoder replacement_from(Json state) {
  const Json pattern = state["pattern"];
  const Finder finder = finder_from(pattern);
  const std::string content(state["content"].text());
  const auto size = static_cast<double>(count_characters(content));
  const double growth =
      pattern["String"] ? size / static_cast<double>(count_characters(pattern["String"].text())) : size + 1;
  const auto run = [=](Tokens& tokens) {
    for (std::string& token : tokens) {
      std::string text;
      for (const Range& range : finder(token)) {
        text += range.match ? content : token.substr(range.begin, range.end - range.begin);
      }
      token = std::move(text);
    }
  };
  return {run, std::max(1.0, growth)};
}

Decoder sequence_from(Json state) {
  std::vector<Decoder> all;
  Decoder joined;
  for_each_item(state["decoders"], [&](Json each) {
    all.push_back(decoder_from(each));
    joined.growth *= all.back().growth;
    joined.byte_level |= all.back().byte_level;
    joined.byte_fallback |= all.back().byte_fallback;
  });
  joined.run = [all = std::move(all)](Tokens& tokens) {
    for (const Decoder& each : all) each.run(tokens);
  };
  return joined;
}

void fuse(Tokens& tokens) {
  std::string text;
  for (const std::string& token : tokens) text += token;
  tokens = {std::move(text)};
}

void join_with_spaces(Tokens& tokens) {
  for (size_t i = 1; i < tokens.size(); ++i) tokens[i].insert(0, " ");
}

}  // namespace

Decoder decoder_from(Json state) {
  if (!state) return {join_with_spaces};
  const std::string_view type = state["type"].text();
  if (type == "Sequence") return sequence_from(state);
  if (type == "ByteLevel") return {byte_level, 1, true};
  if (type == "ByteFallback") return {byte_fallback, 1, false, true};
  if (type == "Fuse") return {fuse};
  if (type == "WordPiece") return word_piece_from(state);
  if (type == "Metaspace") return metaspace_from(state);
  if (type == "Strip") return strip_from(state);
  if (type == "Replace") return replacement_from(state);
  unknown_part("the decoder " + quoted(type));
}

}  // namespace blip2rt
