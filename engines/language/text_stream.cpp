#include "language/text_stream.h"

#include <algorithm>

#include "english/text_forms.h"

namespace blip2rt {

std::string TextStream::push(int64_t id) {
  ended_ = ended_ || tokenizer_.begins_turn(id);
  if (ended_) return "";
  ids_.push_back(id);
  return rest(tokenizer_.settled_text(ids_, single_line_));
}

std::string TextStream::rest(const std::string& text) {
  if (text.size() <= emitted_) return "";
  std::string piece = text.substr(emitted_);
  emitted_ = text.size();
  return piece;
}

std::string StopCut::push(const std::string& piece) {
  if (stopped_) return "";
  whole_ += piece;
  size_t held = 0;
  for (const std::string& stop : stops_) {
    for (size_t length = std::min(stop.empty() ? 0 : stop.size() - 1, whole_.size()); length > held; --length) {
      if (whole_.compare(whole_.size() - length, length, stop, 0, length) == 0) held = length;
    }
  }
  const std::string_view text = cut(whole_.size() - held);
  return rest(text.size() == whole_.size() ? text : stripped_end(text));
}

std::pair<std::string, std::string> StopCut::finish(const std::string* whole) {
  if (whole != nullptr) whole_ = *whole;
  const std::string_view uncut = cut(whole_.size()), text = stopped_ ? stripped_end(uncut) : uncut;
  return {std::string(text), rest(text)};
}

std::string_view StopCut::cut(size_t end) {
  stopped_ = false;
  for (const std::string& stop : stops_) {
    const size_t found = whole_.find(stop);
    stopped_ = stopped_ || found != std::string::npos;
    end = std::min(end, found);
  }
  return std::string_view(whole_).substr(0, end);
}

std::string StopCut::rest(std::string_view text) {
  if (text.size() <= emitted_) return "";
  const std::string piece(text.substr(emitted_));
  emitted_ = text.size();
  return piece;
}

}  // namespace blip2rt
