// JPEG by libjpeg-turbo.
#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <new>
#include <utility>

#include "media/decoders.h"

extern "C" {
#include <jpeglib.h>  // needs size_t and FILE
}

namespace blip2rt {
namespace {

using std::string_view_literals::operator""sv;

struct Errors {
  jpeg_error_mgr manager;  // first: libjpeg knows only its address
  std::jmp_buf jump;
  char message[JMSG_LENGTH_MAX];
  bool out_of_memory;
};

[[noreturn]] void fail(j_common_ptr info, const char* message) {
  auto& errors = *reinterpret_cast<Errors*>(info->err);
  std::snprintf(errors.message, sizeof errors.message, "%s", message);
  std::longjmp(errors.jump, 1);
}

void on_error(j_common_ptr info) {
  constexpr int kOutOfMemory = 56;  // JERR_OUT_OF_MEMORY
  auto& errors = *reinterpret_cast<Errors*>(info->err);
  errors.out_of_memory = info->err->msg_code == kOutOfMemory;
  char message[JMSG_LENGTH_MAX];
  info->err->format_message(info, message);
  fail(info, message);
}

boolean on_end(j_decompress_ptr info) { fail(reinterpret_cast<j_common_ptr>(info), "it is truncated"); }

// A crafted file may have any number of scans, each as slow as decoding a picture. blip2rt/untrusted/image_format.py
// has the same limits.
void on_progress(j_common_ptr info) {
  constexpr uint64_t kMinScans = 20, kMaxScans = 200, kScannedPixels = 1'000'000'000;
  const auto& picture = *reinterpret_cast<j_decompress_ptr>(info);
  const uint64_t pixels = std::max<uint64_t>(1, uint64_t{picture.image_width} * picture.image_height);
  const uint64_t limit = std::clamp(kScannedPixels / pixels, kMinScans, kMaxScans);
  if (static_cast<uint64_t>(picture.input_scan_number) > limit) fail(info, "it has too many scans");
}

// Functions that longjmp may leave have no objects with destructors: this class has them.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {
    info_.err = jpeg_std_error(&errors_.manager);
    errors_.manager.error_exit = on_error;
    errors_.manager.emit_message = [](j_common_ptr, int) {};
    errors_.manager.output_message = [](j_common_ptr) {};
    progress_.progress_monitor = on_progress;
  }
  ~Reader() { jpeg_destroy_decompress(&info_); }

  bool open() {
    if (setjmp(errors_.jump) != 0) return false;
    jpeg_create_decompress(&info_);
    info_.progress = &progress_;
    jpeg_mem_src(&info_, reinterpret_cast<const unsigned char*>(bytes_.data()), bytes_.size());
    info_.src->fill_input_buffer = on_end;
    jpeg_save_markers(&info_, JPEG_APP0 + 1, 0xFFFF);
    jpeg_read_header(&info_, TRUE);
    return true;
  }

  bool decode(Picture& picture) {
    if (setjmp(errors_.jump) != 0) return false;
    jpeg_start_decompress(&info_);
    while (info_.output_scanline < info_.output_height) {
      JSAMPROW row = picture.row(info_.output_scanline);
      jpeg_read_scanlines(&info_, &row, 1);
    }
    return true;  // what follows the last row does not matter
  }

  jpeg_decompress_struct& info() { return info_; }
  [[noreturn]] void raise(const std::string& name) const {
    if (errors_.out_of_memory) throw std::bad_alloc();
    throw ImageError(name + " is damaged: " + errors_.message);
  }

 private:
  std::string_view bytes_;
  jpeg_decompress_struct info_{};
  jpeg_progress_mgr progress_{};
  Errors errors_{};
};

Size divided(Size size, unsigned scale) {
  return {(size.width + scale - 1) / scale, (size.height + scale - 1) / scale};
}

// The scale at which blip2rt.image lets Pillow's `draft` decode: 1, 2, 4 or 8.
unsigned scale_of(Size size, const ImageLimits& limits) {
  unsigned fitting = 1;
  while (fitting < 8 && divided(size, fitting).width * divided(size, fitting).height > limits.max_pixels) fitting *= 2;
  const auto ratio = [&](size_t side) {
    const size_t wanted = std::min(side / fitting, limits.min_side == 0 ? side : limits.min_side);
    return side / std::max<size_t>(1, wanted);
  };
  const size_t most = std::min(ratio(size.width), ratio(size.height));
  return most >= 8 ? 8 : most >= 4 ? 4 : most >= 2 ? 2 : 1;
}

// Whether the decoder need not hold the file as a whole: sequential, with all components in one scan.
bool decodes_by_line(const jpeg_decompress_struct& info) {
  return info.progressive_mode == FALSE && info.arith_code == FALSE && info.comps_in_scan == info.num_components;
}

Metadata metadata_of(const jpeg_decompress_struct& info) {
  constexpr std::string_view kExif = "Exif\0\0"sv, kXmp = "http://ns.adobe.com/xap/1.0/\0"sv;
  Metadata metadata;
  for (const jpeg_marker_struct* marker = info.marker_list; marker != nullptr; marker = marker->next) {
    const std::string_view data(reinterpret_cast<const char*>(marker->data), marker->data_length);
    if (data.substr(0, kExif.size()) == kExif) metadata.exif += data.substr(kExif.size());
    if (data.substr(0, kXmp.size()) == kXmp) metadata.xmp = data.substr(kXmp.size());
  }
  return metadata;
}

// Inverted CMYK, as Adobe writes it, to RGB, as Pillow does it.
void cmyk_to_rgb(uint8_t* pixels, size_t count) {
  for (uint8_t* end = pixels + 4 * count; pixels != end; pixels += 4) {
    const unsigned light = pixels[3];
    for (int channel = 0; channel < 3; ++channel) {
      const unsigned product = (255u - pixels[channel]) * light + 128;
      pixels[channel] = static_cast<uint8_t>(light - (((product >> 8) + product) >> 8));
    }
  }
}

}  // namespace

DecodedImage decode_jpeg(std::string_view bytes, const std::string& name, const ImageLimits& limits) {
  Reader reader(bytes);
  if (!reader.open()) reader.raise(name);
  jpeg_decompress_struct& info = reader.info();
  if (info.num_components != 1 && info.num_components != 3 && info.num_components != 4) {
    throw ImageError(name + " is damaged: it has " + std::to_string(info.num_components) + " channels");
  }
  const Size size{info.image_width, info.image_height};
  const bool many = size.width * size.height > limits.max_pixels;
  info.scale_num = 1;
  info.scale_denom = !many || decodes_by_line(info) ? scale_of(size, limits) : 1;
  info.out_color_space = info.num_components == 4 ? JCS_CMYK : JCS_EXT_RGBX;
  const Size decoded = divided(size, info.scale_denom);
  check_size(name, size, decoded, limits);
  DecodedImage image{Picture(decoded.width, decoded.height), metadata_of(info)};
  if (!reader.decode(image.picture)) reader.raise(name);
  if (info.num_components == 4) cmyk_to_rgb(image.picture.pixels.get(), decoded.width * decoded.height);
  return image;
}

}  // namespace blip2rt
