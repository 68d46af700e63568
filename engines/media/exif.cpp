// Finds the tag Orientation in a TIFF directory, or the property tiff:Orientation in XMP.
#include "media/exif.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>

namespace blip2rt {
namespace {

using std::string_view_literals::operator""sv;

// Numbers of a TIFF structure. Beyond its end they are 0.
class Tiff {
 public:
  explicit Tiff(std::string_view bytes) : bytes_(bytes), big_endian_(bytes.substr(0, 2) == "MM"sv) {}

  bool is_valid() const { return (bytes_.substr(0, 2) == "II"sv || big_endian_) && number(2, 2) == 42; }

  uint32_t number(size_t at, size_t size) const {
    uint32_t value = 0;
    if (at > bytes_.size() || bytes_.size() - at < size) return 0;
    for (size_t i = 0; i < size; ++i) {
      const auto byte = static_cast<uint8_t>(bytes_[at + (big_endian_ ? i : size - 1 - i)]);
      value = value << 8 | byte;
    }
    return value;
  }

 private:
  std::string_view bytes_;
  bool big_endian_;
};

// Returns nothing if XMP is to be asked. An EXIF structure that is damaged or wrong counts as 1, as in Pillow.
std::optional<uint32_t> exif_orientation(std::string_view exif) {
  constexpr size_t kEntry = 12;
  constexpr uint32_t kOrientation = 0x0112, kShort = 3, kLong = 4;
  while (exif.substr(0, 6) == "Exif\0\0"sv) exif.remove_prefix(6);
  if (exif.empty()) return std::nullopt;
  const Tiff tiff(exif);
  if (!tiff.is_valid()) return 1;
  const size_t directory = tiff.number(4, 4), count = tiff.number(directory, 2);
  for (size_t i = 0; i < count; ++i) {
    const size_t entry = directory + 2 + kEntry * i;
    if (tiff.number(entry, 2) != kOrientation || tiff.number(entry + 4, 4) != 1) continue;
    const uint32_t type = tiff.number(entry + 2, 2);
    if (type != kShort && type != kLong) continue;
    return tiff.number(entry + 8, type == kShort ? 2 : 4);
  }
  return std::nullopt;
}

uint32_t xmp_orientation(std::string_view xmp) {
  constexpr std::string_view kName = "tiff:Orientation";
  for (size_t at = xmp.find(kName); at != std::string_view::npos; at = xmp.find(kName, at + 1)) {
    std::string_view rest = xmp.substr(at + kName.size());
    const size_t sign = rest.substr(0, 2) == "=\""sv ? 2 : rest.substr(0, 1) == ">"sv ? 1 : 0;
    if (sign == 0 || rest.size() <= sign || rest[sign] < '0' || rest[sign] > '9') continue;
    return static_cast<uint32_t>(rest[sign] - '0');
  }
  return 1;
}

}  // namespace

int orientation_of(const Metadata& metadata) {
  const std::optional<uint32_t> found = exif_orientation(metadata.exif);
  const uint32_t orientation = found ? *found : xmp_orientation(metadata.xmp);
  return orientation >= 1 && orientation <= 8 ? static_cast<int>(orientation) : 1;
}

}  // namespace blip2rt
