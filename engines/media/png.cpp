// PNG by libpng.
#include <png.h>

#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <new>
#include <vector>

#include "media/decoders.h"

namespace blip2rt {
namespace {

// Functions that longjmp may leave have no objects with destructors: this class has them.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : rest_(bytes) {
    png_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, on_error, [](png_structp, png_const_charp) {});
    if (png_ == nullptr) throw std::bad_alloc();
    info_ = png_create_info_struct(png_);
    if (info_ == nullptr) {
      png_destroy_read_struct(&png_, nullptr, nullptr);
      throw std::bad_alloc();
    }
    png_set_read_fn(png_, this, on_read);
  }
  ~Reader() { png_destroy_read_struct(&png_, &info_, nullptr); }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  bool open() {
    constexpr png_uint_32 kMaxSide = 0x7FFFFFFF;  // check_size has the limits
    if (setjmp(jump_) != 0) return false;
    png_set_user_limits(png_, kMaxSide, kMaxSide);
    png_set_crc_action(png_, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
    png_read_info(png_, info_);
    return true;
  }

  // Decodes to 4 bytes a pixel, of which the last is alpha, or 255.
  bool decode(png_bytep* rows) {
    if (setjmp(jump_) != 0) return false;
    const int type = png_get_color_type(png_, info_), depth = png_get_bit_depth(png_, info_);
    if (type == PNG_COLOR_TYPE_PALETTE) {
      png_set_palette_to_rgb(png_);
      if (png_get_valid(png_, info_, PNG_INFO_tRNS) != 0) png_set_tRNS_to_alpha(png_);
    }
    if (type == PNG_COLOR_TYPE_GRAY && depth < 8) png_set_expand_gray_1_2_4_to_8(png_);
    if (depth == 16 && type == PNG_COLOR_TYPE_GRAY) png_set_scale_16(png_);
    if (depth == 16 && type != PNG_COLOR_TYPE_GRAY) png_set_strip_16(png_);  // as Pillow does
    if ((type & PNG_COLOR_MASK_COLOR) == 0) png_set_gray_to_rgb(png_);
    png_set_add_alpha(png_, 255, PNG_FILLER_AFTER);
    png_set_interlace_handling(png_);
    png_read_update_info(png_, info_);
    png_read_image(png_, rows);
    return true;
  }

  // Reads metadata behind the pixels. Damage there does not matter.
  void finish() {
    if (setjmp(jump_) == 0) png_read_end(png_, info_);
  }

  Size size() const { return {png_get_image_width(png_, info_), png_get_image_height(png_, info_)}; }

  [[noreturn]] void raise(const std::string& name) const {
    if (std::strstr(message_, "emory") != nullptr) throw std::bad_alloc();
    throw ImageError(name + " is damaged: " + message_);
  }

  bool has_alpha() const {
    const int type = png_get_color_type(png_, info_);
    return (type & PNG_COLOR_MASK_ALPHA) != 0 ||
           (type == PNG_COLOR_TYPE_PALETTE && png_get_valid(png_, info_, PNG_INFO_tRNS) != 0);
  }

  // Whether one colour of a picture without alpha is transparent. Pillow compares it with 8-bit pixels as it is written
  // in the file; that of 16-bit grey is not used.
  bool transparent_colour(uint8_t* rgb) const {
    const int type = png_get_color_type(png_, info_), depth = png_get_bit_depth(png_, info_);
    png_color_16p key = nullptr;
    if (type == PNG_COLOR_TYPE_PALETTE || (type == PNG_COLOR_TYPE_GRAY && depth == 16) ||
        png_get_tRNS(png_, info_, nullptr, nullptr, &key) == 0 || key == nullptr) {
      return false;
    }
    const auto grey = depth == 1 ? (key->gray != 0 ? 255 : 0) : key->gray;
    const bool is_grey = type == PNG_COLOR_TYPE_GRAY;
    rgb[0] = static_cast<uint8_t>(is_grey ? grey : key->red);
    rgb[1] = static_cast<uint8_t>(is_grey ? grey : key->green);
    rgb[2] = static_cast<uint8_t>(is_grey ? grey : key->blue);
    return true;
  }

  Metadata metadata() const {
    Metadata metadata;
    png_uint_32 size = 0;
    png_bytep exif = nullptr;
    if (png_get_eXIf_1(png_, info_, &size, &exif) != 0) metadata.exif.assign(reinterpret_cast<char*>(exif), size);
    png_textp texts = nullptr;
    for (int i = 0, count = png_get_text(png_, info_, &texts, nullptr); i < count; ++i) {
      const png_text& text = texts[i];
      const size_t length = text.compression > 0 && text.itxt_length > 0 ? text.itxt_length : text.text_length;
      if (std::strcmp(text.key, "XML:com.adobe.xmp") == 0) metadata.xmp.assign(text.text, length);
      if (metadata.exif.empty() && std::strcmp(text.key, "Raw profile type exif") == 0) {
        metadata.exif = from_hex({text.text, length});
      }
    }
    return metadata;
  }

 private:
  // ImageMagick's way to write EXIF: three lines, then hexadecimal digits.
  static std::string from_hex(std::string_view text) {
    for (int line = 0; line < 3; ++line) {
      const size_t end = text.find('\n');
      if (end == std::string_view::npos) return "";
      text.remove_prefix(end + 1);
    }
    std::string digits, bytes;
    for (const char digit : text) {
      if (digit != '\n') digits += digit;
    }
    for (size_t i = 0; i + 1 < digits.size(); i += 2) {
      unsigned byte = 0;
      if (std::sscanf(&digits[i], "%2x", &byte) != 1) return "";
      bytes += static_cast<char>(byte);
    }
    return bytes;
  }

  static void on_read(png_structp png, png_bytep to, size_t size) {
    auto& self = *static_cast<Reader*>(png_get_io_ptr(png));
    if (size > self.rest_.size()) png_error(png, "it is truncated");
    std::memcpy(to, self.rest_.data(), size);
    self.rest_.remove_prefix(size);
  }

  static void on_error(png_structp png, png_const_charp message) {
    auto& self = *static_cast<Reader*>(png_get_error_ptr(png));
    std::snprintf(self.message_, sizeof self.message_, "%s", message);
    std::longjmp(self.jump_, 1);
  }

  std::string_view rest_;
  std::jmp_buf jump_;
  char message_[100] = "";
  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
};

void put_white(Picture& picture, const uint8_t* rgb) {
  uint8_t* pixel = picture.pixels.get();
  for (size_t i = 0; i < picture.size.width * picture.size.height; ++i, pixel += 4) {
    if (std::memcmp(pixel, rgb, 3) == 0) std::memset(pixel, 255, 3);
  }
}

}  // namespace

DecodedImage decode_png(std::string_view bytes, const std::string& name, const ImageLimits& limits) {
  Reader reader(bytes);
  if (!reader.open()) reader.raise(name);
  const Size size = reader.size();
  check_size(name, size, size, limits);
  const bool has_alpha = reader.has_alpha();
  uint8_t colour[3];
  const bool has_colour = reader.transparent_colour(colour);
  DecodedImage image{Picture(size.width, size.height), {}};
  std::vector<png_bytep> rows;
  for (size_t y = 0; y < size.height; ++y) rows.push_back(image.picture.row(y));
  if (!reader.decode(rows.data())) reader.raise(name);
  reader.finish();
  image.metadata = reader.metadata();
  if (has_alpha) lay_on_white(image.picture.pixels.get(), size.width * size.height);
  if (has_colour) put_white(image.picture, colour);
  return image;
}

}  // namespace blip2rt
