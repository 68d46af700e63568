// Reads and writes messages in protobuf's wire format.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace blip2rt {
namespace protobuf {

enum Wire : uint8_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

struct Field {
  uint32_t number = 0;
  Wire wire = kVarint;
  uint64_t value = 0;      // a varint, or the bits of a float
  std::string_view bytes;  // a string or a submessage
  std::string_view whole;  // the field including its tag
};

class Reader {
 public:
  explicit Reader(std::string_view message) : rest_(message) {}

  bool next(Field& field) {
    if (rest_.empty()) return false;
    const char* begin = rest_.data();
    const uint64_t tag = varint();
    if (tag > UINT32_MAX || tag < 8) throw std::runtime_error("not a protobuf message: a field has no number");
    field = {static_cast<uint32_t>(tag >> 3), static_cast<Wire>(tag & 7), 0, {}, {}};
    switch (tag & 7) {
      case kVarint: field.value = varint(); break;
      case kFixed64: take(8); break;
      case kBytes: field.bytes = take(varint()); break;
      case kFixed32: {
        const std::string_view little_endian = take(4);
        for (size_t i = 4; i-- > 0;) field.value = field.value << 8 | static_cast<uint8_t>(little_endian[i]);
        break;
      }
      default: throw std::runtime_error("not a protobuf message: unknown wire type");
    }
    field.whole = std::string_view(begin, static_cast<size_t>(rest_.data() - begin));
    return true;
  }

 private:
  template <class F>
  friend void each_packed(std::string_view, const F&);

  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const uint8_t byte = static_cast<uint8_t>(take(1)[0]);
      value |= static_cast<uint64_t>(byte & 127) << shift;
      if (byte < 128) return value;
    }
    throw std::runtime_error("not a protobuf message: a number has more than ten bytes");
  }

  std::string_view take(uint64_t count) {
    if (count > rest_.size()) throw std::runtime_error("not a protobuf message: it ends too early");
    const std::string_view taken = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return taken;
  }

  std::string_view rest_;
};

// The last value of a field of a message, or an empty view.
inline std::string_view submessage(std::string_view message, uint32_t number) {
  std::string_view found;
  Field field;
  for (Reader reader(message); reader.next(field);) {
    if (field.number == number && field.wire == kBytes) found = field.bytes;
  }
  return found;
}

// Calls take(number) for each number of a packed field.
template <class F>
void each_packed(std::string_view bytes, const F& take) {
  for (Reader reader(bytes); !reader.rest_.empty();) take(reader.varint());
}

// Appends the numbers of a packed field.
inline void read_packed(std::string_view bytes, std::vector<uint64_t>& to) {
  each_packed(bytes, [&to](uint64_t number) { to.push_back(number); });
}

inline void write_varint(std::string& to, uint64_t value) {
  for (; value >= 128; value >>= 7) to += static_cast<char>(value | 128);
  to += static_cast<char>(value);
}

inline void write(std::string& to, uint32_t number, std::string_view bytes) {
  write_varint(to, number << 3 | 2);
  write_varint(to, bytes.size());
  to += bytes;
}

inline void write(std::string& to, uint32_t number, uint64_t value) {
  write_varint(to, number << 3);
  write_varint(to, value);
}

inline void write(std::string& to, uint32_t number, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  write_varint(to, number << 3 | 5);
  for (int shift = 0; shift < 32; shift += 8) to += static_cast<char>(bits >> shift);
}

}  // namespace protobuf
}  // namespace blip2rt
