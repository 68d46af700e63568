// WebP by libwebp. Of an animation the first frame is decoded.
#include <webp/decode.h>
#include <webp/demux.h>

#include <cstring>
#include <memory>
#include <utility>

#include "media/decoders.h"

namespace blip2rt {
namespace {

Metadata metadata_of(const WebPData& data, const std::string& name) {
  const std::unique_ptr<WebPDemuxer, decltype(&WebPDemuxDelete)> demuxer(WebPDemux(&data), WebPDemuxDelete);
  if (demuxer == nullptr) throw ImageError(name + " is damaged: it is not complete");
  const auto chunk = [&demuxer](const char* name) {
    WebPChunkIterator found;
    if (WebPDemuxGetChunk(demuxer.get(), name, 1, &found) == 0) return std::string();
    std::string content(reinterpret_cast<const char*>(found.chunk.bytes), found.chunk.size);
    WebPDemuxReleaseChunkIterator(&found);
    return content;
  };
  return {chunk("EXIF"), chunk("XMP ")};
}

bool decode_frame(const WebPData& data, Picture& picture) {
  WebPAnimDecoderOptions options;
  if (WebPAnimDecoderOptionsInit(&options) == 0) return false;
  const std::unique_ptr<WebPAnimDecoder, decltype(&WebPAnimDecoderDelete)> decoder(WebPAnimDecoderNew(&data, &options),
                                                                                   WebPAnimDecoderDelete);
  WebPAnimInfo info;
  uint8_t* canvas = nullptr;
  int timestamp = 0;
  if (decoder == nullptr || WebPAnimDecoderGetInfo(decoder.get(), &info) == 0 ||
      info.canvas_width != picture.size.width || info.canvas_height != picture.size.height ||
      WebPAnimDecoderGetNext(decoder.get(), &canvas, &timestamp) == 0) {
    return false;
  }
  std::memcpy(picture.pixels.get(), canvas, 4 * picture.size.width * picture.size.height);
  return true;
}

}  // namespace

DecodedImage decode_webp(std::string_view bytes, const std::string& name, const ImageLimits& limits) {
  const WebPData data{reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()};
  WebPBitstreamFeatures features;
  if (WebPGetFeatures(data.bytes, data.size, &features) != VP8_STATUS_OK) {
    throw ImageError(name + " is damaged: its header is not WebP's");
  }
  const Size size{static_cast<size_t>(features.width), static_cast<size_t>(features.height)};
  check_size(name, size, size, limits);
  Metadata metadata = metadata_of(data, name);
  DecodedImage image{Picture(size.width, size.height), std::move(metadata)};
  const size_t pixel_bytes = 4 * size.width * size.height;
  const bool decoded = features.has_animation != 0
                           ? decode_frame(data, image.picture)
                           : WebPDecodeRGBAInto(data.bytes, data.size, image.picture.pixels.get(), pixel_bytes,
                                                static_cast<int>(4 * size.width)) != nullptr;
  if (!decoded) throw ImageError(name + " is damaged: its pixels cannot be decoded");
  if (features.has_alpha != 0) lay_on_white(image.picture.pixels.get(), size.width * size.height);
  return image;
}

}  // namespace blip2rt
