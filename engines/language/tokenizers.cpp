// Puts texts into templates, and keeps a caller's text from containing special tokens where that is asked for.
#include "language/tokenizers.h"

#include <algorithm>
#include <set>
#include <utility>

#include "base/unicode.h"
#include "base/utf8.h"
#include "english/text_forms.h"

namespace blip2rt {
namespace {

constexpr uint64_t kMaxTokenizerBytes = 256 << 20;  // Gemma's has 33 MB
constexpr size_t kMaxTokenCharacters = 100;         // a longer text than this times the model's tokens cannot fit

// Special tokens of chat models that begin or end a turn.
const std::set<std::string, std::less<>> kTurns = {
    "<|im_start|>",      "<|im_end|>",      "<|endoftext|>",   "<|start_header_id|>",
    "<|eot_id|>",        "<|end_of_text|>", "<start_of_turn>", "<end_of_turn>",
    "<|user|>",          "<|assistant|>",   "<|system|>",      "<|end|>",
    "<|start_of_role|>", "<|end_of_role|>", "[INST]",          "[/INST]"};

// Runs what the tokenizer of a file does, with its errors as ours.
template <class Work>
auto guarded(const std::string& file, Work work) {
  try {
    return work();
  } catch (const TokenizerError& error) {
    if (error.kind == TokenizerError::kText) throw Error(ErrorKind::kArgument, error.what());
    throw Error(ErrorKind::kModel, file + " failed as a tokenizer: " + error.what());
  }
}

// Splits a text at special words, of which the longest comes first at any place. Odd pieces are special words.
std::vector<std::string> split(std::string_view text, const std::vector<std::string>& words) {
  std::vector<std::string> pieces(1);
  for (size_t at = 0; at < text.size();) {
    const auto is_here = [&](const std::string& word) { return text.substr(at, word.size()) == word; };
    const auto found = std::find_if(words.begin(), words.end(), is_here);
    if (found == words.end()) {
      pieces.back() += text[at++];
    } else {
      pieces.push_back(*found);
      pieces.emplace_back();
      at += found->size();
    }
  }
  return pieces;
}

}  // namespace

std::unique_ptr<Tokenizer> open_tokenizer(const std::string& file, bool merges) {
  const auto error_of = [&](const char* fault, const std::exception& error) {
    return Error(ErrorKind::kModel, file + fault + error.what());
  };
  try {
    auto tokenizer = std::make_unique<Tokenizer>(read_regular(file, kMaxTokenizerBytes));
    if (merges) tokenizer->read_merges();
    return tokenizer;
  } catch (const TokenizerError& error) {
    if (error.kind == TokenizerError::kUnknown) throw error_of(" needs what no supported tokenizer has: ", error);
    throw error_of(error.kind == TokenizerError::kUnsafe ? " is not a safe tokenizer: " : " is not a tokenizer: ",
                   error);
  } catch (const std::runtime_error& error) {
    throw error_of(" is not a tokenizer: ", error);
  }
}

void check_tokenizers(const Bundle& bundle) {
  const Manifest& manifest = bundle.manifest;
  std::set<std::string> names;
  if (manifest.llm) names.insert(manifest.llm->tokenizer);
  if (manifest.retrieval) names.insert(manifest.retrieval->tokenizer);
  if (manifest.question) names.insert(manifest.question->tokenizer);
  Faults faults;
  for (const std::string& name : names) {
    try {
      open_tokenizer(bundle.file(name), true);
    } catch (const Error& error) {
      faults.emplace_back(error.what());
    }
  }
  if (!faults.empty()) throw Error(ErrorKind::kModel, std::move(faults));
}

void check_text(const std::string& text) {
  if (!is_utf8(text)) throw Error(ErrorKind::kArgument, "the text " + quoted(text) + " is not valid UTF-8");
}

LlmTokenizer::LlmTokenizer(std::string file, std::shared_ptr<const Tokenizer> tokenizer, LlmSpec spec,
                           bool special_tokens)
    : file_(std::move(file)),
      tokenizer_(std::move(tokenizer)),
      spec_(std::move(spec)),
      special_tokens_(special_tokens) {
  const Ids& ends = spec_.eos_token_ids;
  for (const AddedToken& token : tokenizer_->added_tokens()) {
    if (!token.special || token.content.empty()) continue;
    special_words_.push_back(token.content);
    if (kTurns.count(token.content) != 0 && std::find(ends.begin(), ends.end(), token.id) == ends.end()) {
      turns_[token.id] = token.content;
    }
  }
  std::stable_sort(special_words_.begin(), special_words_.end(),
                   [](const std::string& a, const std::string& b) { return a.size() > b.size(); });
}

Ids LlmTokenizer::encode(const Prompt& prompt) const {
  if (prompt.whole().empty() && spec_.empty_prompt_ids) return *spec_.empty_prompt_ids;
  Ids ids = encode(prompt, spec_.add_special_tokens);
  if (spec_.prepend_bos && spec_.bos_token_id) ids.insert(ids.begin(), *spec_.bos_token_id);
  return ids;
}

Ids LlmTokenizer::encode(const Prompt& prompt, bool layout) const {
  check_text(prompt.text);
  const size_t characters = count_characters(prompt.text);
  if (characters > kMaxTokenCharacters * static_cast<size_t>(spec_.max_positions)) {
    throw Error(ErrorKind::kArgument,
                "a text has " + with_commas(characters) + " characters, too many for the model: shorten it");
  }
  return guarded(file_, [&] {
    const std::string whole = prompt.whole();
    const auto count = [this](std::string_view text) { return split(text, special_words_).size() / 2; };
    if (special_tokens_ || count(whole) <= count(prompt.before) + count(prompt.after)) {
      return tokenizer_->encode(TextPiece{whole}, layout);
    }
    std::vector<std::string> held;
    return tokenizer_->encode(plain_pieces(prompt, held), layout);
  });
}

// Special tokens of the template only. They split a text before anything else.
std::vector<TextPiece> LlmTokenizer::plain_pieces(const Prompt& prompt, std::vector<std::string>& held) const {
  held = split(prompt.before, special_words_);
  const std::vector<std::string> after = split(prompt.after, special_words_);
  held.back() += prompt.text + after.front();
  held.insert(held.end(), after.begin() + 1, after.end());
  std::vector<TextPiece> pieces;
  for (size_t i = 0; i < held.size(); ++i) pieces.push_back({held[i], i % 2 == 0});
  return pieces;
}

std::string LlmTokenizer::decode(const int64_t* ids, size_t count, bool skip_special) const {
  return guarded(file_, [&] { return tokenizer_->decode(ids, count, skip_special); });
}

std::string LlmTokenizer::line(const Ids& ids) const { return tidied(decode(ids.data(), ids.size(), true)); }

std::string LlmTokenizer::text(const Ids& ids) const {
  std::string text = decode(ids.data(), ids.size(), true);
  if (spec_.clean_up_tokenization_spaces) text = cleaned_up(std::move(text));
  return std::string(stripped(text));
}

std::string LlmTokenizer::settled_text(const Ids& ids, bool single_line) const {
  constexpr std::string_view kIncomplete = "\uFFFD";  // half a character at the end
  std::string text = decode(ids.data(), tokenizer_->settled(ids.data(), ids.size()), true);
  while (text.size() >= kIncomplete.size() &&
         text.compare(text.size() - kIncomplete.size(), kIncomplete.size(), kIncomplete) == 0) {
    text.resize(text.size() - kIncomplete.size());
  }
  if (single_line) return tidied(std::string_view(text).substr(0, settled_line(text)));
  if (spec_.clean_up_tokenization_spaces) {
    text.resize(cleaned_length(text));
    text = cleaned_up(std::move(text));
  }
  return std::string(stripped(text));
}

Ids LlmTokenizer::shown(const Ids& ids) const {
  return {ids.begin(), std::find_if(ids.begin(), ids.end(), [this](int64_t id) { return begins_turn(id); })};
}

std::shared_ptr<const Vocabulary> LlmTokenizer::vocabulary() const {
  return vocabulary_.get([this] {
    auto made = std::make_shared<Vocabulary>();
    const auto add = [&made](std::string_view token) { made->add(token); };
    guarded(file_, [&] { tokenizer_->each_token(static_cast<size_t>(spec_.vocab_size), add); });
    return made;
  });
}

std::shared_ptr<const RepeatedWords> LlmTokenizer::repeated_words() const {
  return repeated_words_.get([this] { return std::make_shared<const RepeatedWords>(vocabulary()); });
}

QFormerTokenizer::QFormerTokenizer(std::string file, std::shared_ptr<const Tokenizer> tokenizer, QFormerTextSpec spec,
                                   bool special_tokens)
    : file_(std::move(file)),
      tokenizer_(std::move(tokenizer)),
      spec_(std::move(spec)),
      special_tokens_(special_tokens) {}

Ids QFormerTokenizer::encode(const std::string& text) const {
  const std::string form = written(text);
  return guarded(file_, [&] {
    return tokenizer_->encode(TextPiece{form, !special_tokens_}, true, static_cast<size_t>(spec_.max_text_length));
  });
}

std::string QFormerTokenizer::written(const std::string& text) const {
  check_text(text);
  const auto most =
      10 * kMaxTokenCharacters * static_cast<size_t>(spec_.max_text_length);  // the rest is cut in any case
  const std::string_view first = first_characters(text, most);
  return spec_.clean_captions ? clean_caption(first) : std::string(first);
}

}  // namespace blip2rt
