// A page decodes pictures itself and passes their pixels, so these decoders only name what they cannot read.
#include "media/decoders.h"

namespace blip2rt {
namespace {

[[noreturn]] void reject(const std::string& name) {
  throw ImageError(name + " is compressed: decode it in the browser, and pass its pixels");
}

}  // namespace

DecodedImage decode_jpeg(std::string_view, const std::string& name, const ImageLimits&) { reject(name); }
DecodedImage decode_png(std::string_view, const std::string& name, const ImageLimits&) { reject(name); }
DecodedImage decode_webp(std::string_view, const std::string& name, const ImageLimits&) { reject(name); }

}  // namespace blip2rt
