// Reads JSON in place: strings are unescaped within the document's own bytes, values are views of it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace blip2rt {

class JsonDocument;

// A value of a document, which must outlive it. Values that are missing are null.
class Json {
 public:
  enum Kind : uint8_t { kNull, kFalse, kTrue, kNumber, kString, kDeferred, kArray, kObject };

  Kind kind() const;
  explicit operator bool() const { return kind() != kNull; }

  // Value of a key of an object; null if there is none, or if this is no object.
  Json operator[](std::string_view key) const;

  // Accessors that throw std::runtime_error, with the key's name, if the value is of another kind.
  std::string_view text() const;
  double number() const;
  std::string_view digits() const;  // a number as it is written
  uint32_t whole() const;
  bool flag() const;
  std::string_view deferred() const;  // the bytes of a deferred array

  // Walks over the values of an array, or over keys and values of an object in turn: for (Json each : array).
  class Iterator {
   public:
    Iterator(const JsonDocument& document, uint32_t at) : document_(&document), at_(at) {}
    Json operator*() const { return {*document_, at_}; }
    Iterator& operator++();
    bool operator!=(const Iterator& other) const { return at_ != other.at_; }

   private:
    const JsonDocument* document_;
    uint32_t at_;
  };
  size_t size() const;  // of items; an object has two per key
  Iterator begin() const;
  Iterator end() const;

 private:
  friend class JsonDocument;
  Json(const JsonDocument& document, uint32_t at) : document_(&document), at_(at) {}
  const JsonDocument* document_;
  uint32_t at_;
};

class JsonDocument {
 public:
  // Parses `bytes`, which are changed and must outlive the document. Throws std::runtime_error. An array of the key
  // `deferred` is left as it is, for a document of its own, which may find faults in it.
  explicit JsonDocument(std::string& bytes, std::string_view deferred = {});
  JsonDocument(const JsonDocument&) = delete;
  Json root() const { return {*this, 1}; }

 private:
  friend class Json;
  friend class JsonReader;
  struct Node {
    uint32_t begin;  // of the bytes of a string, number or deferred array
    uint32_t size;   // of the bytes; of an array or object: the nodes in it, itself included
    Json::Kind kind;
  };
  const std::string& bytes_;
  std::vector<Node> nodes_;  // the first is null, for missing values
};

}  // namespace blip2rt
