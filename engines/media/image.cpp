// Reads image files and chooses their decoder.
#include "media/image.h"

#include <algorithm>
#include <new>
#include <system_error>

#include "base/system.h"
#include "base/utf8.h"

namespace blip2rt {
namespace {

using std::string_view_literals::operator""sv;

constexpr uint64_t kMaxFileBytes = 1 << 30;
constexpr size_t kMargin = 2;  // scaled decoding keeps this many times the target's size, for the filter

struct Format {
  std::string_view start;
  const char* name;
  DecodedImage (*decode)(std::string_view, const std::string&, const ImageLimits&);  // null: only its name is known
};

constexpr Format kFormats[] = {
    {"\xFF\xD8\xFF"sv, "JPEG", decode_jpeg},
    {"\x89PNG\r\n\x1A\n"sv, "PNG", decode_png},
    {"GIF8"sv, "GIF", nullptr},
    {"BM"sv, "BMP", nullptr},
    {"II*\0"sv, "TIFF", nullptr},
    {"MM\0*"sv, "TIFF", nullptr},
};
constexpr Format kWebp = {"RIFF"sv, "WEBP", decode_webp};

const Format* format_of(std::string_view bytes) {
  for (const Format& format : kFormats) {
    if (bytes.substr(0, format.start.size()) == format.start) return &format;
  }
  return bytes.size() > 12 && bytes.substr(0, 4) == kWebp.start && bytes.substr(8, 4) == "WEBP"sv ? &kWebp : nullptr;
}

std::vector<uint8_t> prepare(std::string_view bytes, const std::string& name, const ImageTarget& target,
                             const ImageRules& rules) {
  const Format* format = format_of(bytes);
  if (format == nullptr || format->decode == nullptr) {
    throw ImageError(name + " is " + (format == nullptr ? "not an image" : format->name) +
                     ": give one of JPEG, PNG, WEBP");
  }
  ImageLimits limits;
  limits.max_pixels = rules.max_pixels;
  if (rules.scaled_jpeg) limits.min_side = kMargin * std::max(target.size.width, target.size.height);
  try {
    DecodedImage image = format->decode(bytes, name, limits);
    const int orientation = orientation_of(image.metadata);
    if (orientation > 1) image.picture = turned(image.picture, orientation);
    return resize(image.picture, target.size, target.filter);
  } catch (const std::bad_alloc&) {
    throw ImageError("not enough memory for " + name + ": scale it down first");
  }
}

std::string read_image_file(const std::string& path, const std::string& name) {
  try {
    const InputFile file(path);
    if (file.kind() == FileKind::kFolder) {
      throw ImageError(name + " is a directory: give the images in it, as in " + path + "/*.jpg");
    }
    if (file.kind() == FileKind::kOther) throw ImageError(name + " is a pipe or a device: give a file");
    if (file.size() == 0) throw ImageError(name + " is empty: 0 bytes");
    if (file.size() > kMaxFileBytes) {
      throw ImageError(name + " has more than " + with_commas(kMaxFileBytes) + " bytes: scale it down first");
    }
    return file.read();
  } catch (const std::system_error& error) {
    if (error.code() == std::errc::no_such_file_or_directory) throw ImageError("no such file: " + name);
    throw ImageError("cannot read " + name + ": " + error.code().message());
  }
}

}  // namespace

void check_size(const std::string& name, Size size, Size decoded, const ImageLimits& limits) {
  const std::string text =
      name + " has " + std::to_string(size.width) + " x " + std::to_string(size.height) + " pixels, more than ";
  if (std::max(size.width, size.height) > kMaxSide) {
    throw ImageError(text + with_commas(kMaxSide) + " a side: scale it down first");
  }
  if (decoded.width * decoded.height > limits.max_pixels) {
    throw ImageError(text + with_commas(limits.max_pixels) + ": scale it down first, or raise the limit (max_pixels)");
  }
}

std::vector<uint8_t> prepare_file(const std::string& path, const ImageTarget& target, const ImageRules& rules) {
  const std::string name = "'" + single_line(path) + "'";
  if (path.rfind("http://", 0) == 0 || path.rfind("https://", 0) == 0) {
    throw ImageError(name + " is a web address: download the image first");
  }
  try {
    return prepare(read_image_file(path, name), name, target, rules);
  } catch (const std::bad_alloc&) {
    throw ImageError("not enough memory for " + name + ": scale it down first");
  }
}

std::vector<uint8_t> prepare_bytes(std::string_view bytes, const ImageTarget& target, const ImageRules& rules) {
  if (bytes.empty()) throw ImageError("the image is empty: 0 bytes");
  return prepare(bytes, "the image of " + with_commas(bytes.size()) + " bytes", target, rules);
}

std::vector<uint8_t> prepare_pixels(const uint8_t* pixels, Size size, ptrdiff_t stride, PixelFormat format,
                                    const ImageTarget& target) {
  check_size("the image", size, size, {kMostPixels, 0});
  const size_t channels = format == PixelFormat::kRgb || format == PixelFormat::kBgr ? 3 : 4;
  const size_t red = format == PixelFormat::kBgr || format == PixelFormat::kBgra ? 2 : 0;
  Picture picture(size.width, size.height);
  for (size_t y = 0; y < size.height; ++y) {
    const uint8_t* from = pixels + stride * static_cast<ptrdiff_t>(y);
    uint8_t* to = picture.row(y);
    for (size_t x = 0; x < size.width; ++x, from += channels, to += 4) {
      to[0] = from[red];
      to[1] = from[1];
      to[2] = from[2 - red];
      to[3] = channels == 4 ? from[3] : 255;
    }
  }
  if (channels == 4) lay_on_white(picture.pixels.get(), size.width * size.height);
  return resize(picture, target.size, target.filter);
}

}  // namespace blip2rt
