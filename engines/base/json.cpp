#include "base/json.h"

#include <charconv>
#include <stdexcept>

#include "base/unicode.h"
#include "base/utf8.h"

namespace blip2rt {

// Reads a document from its first byte to its last.
class JsonReader {
 public:
  JsonReader(std::string& bytes, std::vector<JsonDocument::Node>& nodes, std::string_view deferred)
      : nodes_(nodes),
        deferred_(deferred),
        start_(bytes.data()),
        at_(bytes.data()),
        end_(bytes.data() + bytes.size()) {}

  void read() {
    value(0);
    skip_spaces();
    if (at_ != end_) fail("text after its end");
  }

 private:
  static constexpr int kMaxDepth = 100;

  [[noreturn]] void fail(const char* what) const {
    throw std::runtime_error("not JSON: " + std::string(what) + " at byte " + std::to_string(at_ - start_));
  }

  void skip_spaces() {
    while (at_ != end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\r' || *at_ == '\t')) ++at_;
  }

  // Skips spaces and one character, if it comes next.
  bool take(char wanted) {
    skip_spaces();
    if (at_ == end_ || *at_ != wanted) return false;
    ++at_;
    return true;
  }

  void add(Json::Kind kind, const char* from = nullptr, const char* to = nullptr) {
    const auto begin = static_cast<uint32_t>(from == nullptr ? 0 : from - start_);
    nodes_.push_back({begin, from == nullptr ? 1 : static_cast<uint32_t>(to - from), kind});
  }

  void word(std::string_view wanted, Json::Kind kind) {
    if (std::string_view(at_, static_cast<size_t>(end_ - at_)).substr(0, wanted.size()) != wanted) fail("no value");
    at_ += wanted.size();
    add(kind);
  }

  void value(int depth) {
    skip_spaces();
    if (depth > kMaxDepth) fail("too many nested values");
    switch (at_ == end_ ? '\0' : *at_) {
      case '{': return items(Json::kObject, '}', depth);
      case '[': return items(Json::kArray, ']', depth);
      case '"': return string();
      case 't': return word("true", Json::kTrue);
      case 'f': return word("false", Json::kFalse);
      case 'n': return word("null", Json::kNull);
      default: return number();
    }
  }

  void items(Json::Kind kind, char closing, int depth) {
    ++at_;
    const size_t node = nodes_.size();
    add(kind);
    if (take(closing)) return;
    do {
      if (kind == Json::kObject) {
        skip_spaces();
        if (at_ == end_ || *at_ != '"') fail("no key");
        string();
        const JsonDocument::Node& key = nodes_.back();
        const bool is_deferred = deferred_ == std::string_view(start_ + key.begin, key.size);
        if (!take(':')) fail("no ':'");
        skip_spaces();
        if (is_deferred && *at_ == '[') {
          defer();
          continue;
        }
      }
      value(depth + 1);
    } while (take(','));
    if (!take(closing)) fail(closing == '}' ? "no '}'" : "no ']'");
    nodes_[node].size = static_cast<uint32_t>(nodes_.size() - node);
  }

  // Finds the end of an array by its brackets, without branches that depend on its bytes.
  void defer() {
    const char* from = at_;
    int open = 0;
    bool quoted = false, escaped = false;
    do {
      if (at_ == end_) fail("an open array");
      const char byte = *at_++;
      quoted ^= (byte == '"') & !escaped;
      escaped = (byte == '\\') & !escaped;
      open += quoted ? 0 : (byte == '[') - (byte == ']');
    } while (open > 0);
    add(Json::kDeferred, from, at_);
  }

  void number() {
    const char* from = at_;
    while (is_digit(*at_)) ++at_;
    const char* const digits = at_;
    while (is_digit(*at_) || *at_ == '-' || *at_ == '+' || *at_ == '.' || *at_ == 'e' || *at_ == 'E') ++at_;
    const bool is_short = digits == at_ && at_ - from > 0 && at_ - from < 16;
    if (is_short && (at_ - from == 1 || *from != '0')) return add(Json::kNumber, from, at_);
    double parsed;
    const auto [stop, error] = std::from_chars(from, at_, parsed);
    if (stop != at_ || error != std::errc() || !is_number({from, static_cast<size_t>(at_ - from)})) fail("no value");
    add(Json::kNumber, from, at_);
  }

  static bool is_digit(char byte) { return byte >= '0' && byte <= '9'; }

  // What std::from_chars takes and JSON does not: 01, .5, 5.
  static bool is_number(std::string_view text) {
    const auto has_digit = [&text](size_t at) { return at < text.size() && is_digit(text[at]); };
    const size_t first = text.substr(0, 1) == "-" ? 1 : 0, point = text.find('.');
    return has_digit(first) && !(text[first] == '0' && has_digit(first + 1)) &&
           (point == std::string_view::npos || has_digit(point + 1));
  }

  void string() {
    const char* from = ++at_;
    while (is_plain(*at_)) ++at_;
    char* to = at_;
    while (*at_ != '"') {
      if (*at_ == '\\') {
        unescape(to);
      } else if (is_plain(*at_)) {
        *to++ = *at_++;
      } else {
        fail(at_ == end_ ? "an open string" : "a control character in a string");
      }
    }
    ++at_;
    add(Json::kString, from, to);
  }

  // A null byte, which is not plain, ends the document.
  static bool is_plain(char byte) { return static_cast<unsigned char>(byte) >= 0x20 && byte != '"' && byte != '\\'; }

  // Reads an escape sequence and writes its character, which is never longer.
  void unescape(char*& to) {
    constexpr std::string_view kNames = "\"\\/bfnrt", kCharacters = "\"\\/\b\f\n\r\t";
    ++at_;
    const char name = at_ == end_ ? '\0' : *at_++;
    if (name != 'u') {
      const size_t which = name == '\0' ? std::string_view::npos : kNames.find(name);
      if (which == std::string_view::npos) fail("an unknown escape sequence");
      *to++ = kCharacters[which];
      return;
    }
    uint32_t code = hex();
    if (code >= 0xD800 && code < 0xDC00 && end_ - at_ >= 2 && at_[0] == '\\' && at_[1] == 'u') {
      at_ += 2;
      const uint32_t low = hex();
      if (low < 0xDC00 || low >= 0xE000) fail("half a character");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    if (code >= 0xD800 && code < 0xE000) fail("half a character");
    to += write_utf8(code, to);
  }

  uint32_t hex() {
    uint32_t code = 0;
    if (end_ - at_ < 4) fail("an open escape sequence");
    const auto [stop, error] = std::from_chars(at_, at_ + 4, code, 16);
    if (stop != at_ + 4 || error != std::errc()) fail("an unknown escape sequence");
    at_ += 4;
    return code;
  }

  std::vector<JsonDocument::Node>& nodes_;
  const std::string_view deferred_;
  char *start_, *at_, *end_;
};

JsonDocument::JsonDocument(std::string& bytes, std::string_view deferred) : bytes_(bytes) {
  if (bytes.size() >= UINT32_MAX) throw std::runtime_error("not JSON: it has 4 GiB or more");
  if (!is_utf8(bytes)) throw std::runtime_error("not JSON: invalid UTF-8");
  constexpr size_t kBytesPerNode = 6;  // of a tokenizer.json; pages that are not written take no memory
  nodes_.reserve(bytes.size() / kBytesPerNode);
  nodes_.push_back({0, 1, Json::kNull});
  JsonReader(bytes, nodes_, deferred).read();
}

Json::Kind Json::kind() const { return document_->nodes_[at_].kind; }

Json Json::operator[](std::string_view key) const {
  if (kind() != kObject) return {*document_, 0};
  for (Iterator at = begin(); at != end(); ++at) {
    const bool found = (*at).text() == key;
    ++at;
    if (found) return *at;
  }
  return {*document_, 0};
}

std::string_view Json::text() const {
  if (kind() != kString) throw std::runtime_error("a value that should be text is not");
  const auto& node = document_->nodes_[at_];
  return std::string_view(document_->bytes_).substr(node.begin, node.size);
}

double Json::number() const {
  const std::string_view digits = this->digits();
  double parsed = 0;
  std::from_chars(digits.data(), digits.data() + digits.size(), parsed);
  return parsed;
}

std::string_view Json::digits() const {
  if (kind() != kNumber) throw std::runtime_error("a value that should be a number is not");
  const auto& node = document_->nodes_[at_];
  return std::string_view(document_->bytes_).substr(node.begin, node.size);
}

uint32_t Json::whole() const {
  uint32_t whole = 0;
  const std::string_view digits = this->digits();
  const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), whole);
  if (stop == digits.data() + digits.size() && error == std::errc()) return whole;
  const double parsed = number();
  if (!(parsed >= 0 && parsed <= UINT32_MAX && parsed == static_cast<double>(static_cast<uint32_t>(parsed)))) {
    throw std::runtime_error("a value that should be a whole number is not");
  }
  return static_cast<uint32_t>(parsed);
}

std::string_view Json::deferred() const {
  const auto& node = document_->nodes_[at_];
  return kind() == kDeferred ? std::string_view(document_->bytes_).substr(node.begin, node.size) : std::string_view();
}

bool Json::flag() const {
  if (kind() != kTrue && kind() != kFalse) throw std::runtime_error("a value that should be true or false is not");
  return kind() == kTrue;
}

Json::Iterator& Json::Iterator::operator++() {
  const auto& node = document_->nodes_[at_];
  at_ += node.kind >= kArray ? node.size : 1;
  return *this;
}

size_t Json::size() const {
  size_t count = 0;
  for (Iterator at = begin(); at != end(); ++at) ++count;
  return count;
}

Json::Iterator Json::begin() const { return {*document_, at_ + 1}; }

Json::Iterator Json::end() const {
  const auto& node = document_->nodes_[at_];
  return {*document_, at_ + (node.kind >= kArray ? node.size : 1)};
}

}  // namespace blip2rt
