// C++17 over blip2rt.h, header-only: objects that free themselves, exceptions, std::string.
//
//   blip2rt::Model model;                                   // nano
//   blip2rt::Features features = model.encode_file("photo.jpg");
//   std::cout << model.caption(features).front().text << model.ask(features, "what is it?").front().text;
#ifndef BLIP2RT_HPP
#define BLIP2RT_HPP

#include <blip2rt.h>

#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace blip2rt {

// What a call reported: every fault with its fix.
class Error : public std::runtime_error {
 public:
  Error(blip2rt_status status, const char* message, std::vector<std::string> faults)
      : std::runtime_error(message), status_(status), faults_(std::move(faults)) {}
  blip2rt_status status() const { return status_; }
  const std::vector<std::string>& faults() const { return faults_; }

 private:
  blip2rt_status status_;
  std::vector<std::string> faults_;
};

// Keys and values, such as {{"num_beams", "5"}}; keys of a list may be repeated.
using Options = std::vector<std::pair<std::string, std::string>>;

// Gets the new part of a text after every token. Returns false to end the generation. It may throw.
using OnPiece = std::function<bool(std::string_view piece)>;

struct Text {
  std::string text;
  double score;
  bool truncated;  // by max_new_tokens or max_time
  std::vector<int64_t> tokens;
};

struct Match {
  double score, probability, cosine;
};

struct Embedding {
  size_t rows, width;
  std::vector<float> values;  // (rows, width)
};

namespace detail {

struct Free {
  void operator()(blip2rt_model* p) const { blip2rt_model_free(p); }
  void operator()(blip2rt_image* p) const { blip2rt_image_free(p); }
  void operator()(blip2rt_features* p) const { blip2rt_features_free(p); }
  void operator()(blip2rt_chat* p) const { blip2rt_chat_free(p); }
  void operator()(blip2rt_texts* p) const { blip2rt_texts_free(p); }
  void operator()(blip2rt_error* p) const { blip2rt_error_free(p); }
};

template <class Handle>
using Owned = std::unique_ptr<Handle, Free>;

inline void check(blip2rt_status status, blip2rt_error* raw) {
  const Owned<blip2rt_error> error(raw);
  if (status == BLIP2RT_OK) return;
  std::vector<std::string> faults;
  for (size_t i = 0; i < blip2rt_error_count(raw); ++i) faults.emplace_back(blip2rt_error_fault(raw, i));
  const char* message = blip2rt_error_message(raw);
  throw Error(status, message == nullptr ? "out of memory" : message, std::move(faults));
}

// Calls a function that writes a value.
template <class Value, class Call>
Value value_of(Call call) {
  Value value{};
  blip2rt_error* error = nullptr;
  const blip2rt_status status = call(&value, &error);
  check(status, error);
  return value;
}

// Calls a function that makes a handle.
template <class Handle, class Call>
Owned<Handle> make(Call call) {
  return Owned<Handle>(value_of<Handle*>(call));
}

// A text as the C functions take it.
inline const char* c_text(const std::string& text) {
  if (text.find('\0') == std::string::npos) return text.c_str();
  const char* fault = "a text has a U+0000, where texts end in C: leave it out";
  throw Error(BLIP2RT_BAD_ARGUMENT, fault, {fault});
}

// Options or strings as the C functions take them.
class Strings {
 public:
  explicit Strings(const Options& options) {
    for (const auto& [key, value] : options) texts_.insert(texts_.end(), {c_text(key), c_text(value)});
    texts_.push_back(nullptr);
  }
  explicit Strings(const std::vector<std::string>& strings) {
    for (const std::string& each : strings) texts_.push_back(c_text(each));
    texts_.push_back(nullptr);
  }
  operator const char* const*() const { return texts_.data(); }

 private:
  std::vector<const char*> texts_;
};

// Hands pieces to an OnPiece, whose exception ends the generation and is thrown again behind the call.
struct Listener {
  const OnPiece& on_piece;
  std::exception_ptr thrown;

  static int call(const char* piece, void* user) {
    auto& self = *static_cast<Listener*>(user);
    try {
      return self.on_piece(piece) ? 0 : 1;
    } catch (...) {
      self.thrown = std::current_exception();
      return 1;
    }
  }
};

template <class Call>
std::vector<Text> texts_of(const OnPiece& on_piece, Call call) {
  Listener listener{on_piece, nullptr};
  const blip2rt_callback callback = on_piece ? &Listener::call : nullptr;
  const auto made = make<blip2rt_texts>([&](auto... outputs) { return call(callback, &listener, outputs...); });
  if (listener.thrown) std::rethrow_exception(listener.thrown);
  std::vector<Text> texts;
  for (size_t i = 0; i < blip2rt_texts_count(made.get()); ++i) {
    size_t count = 0;
    const int64_t* tokens = blip2rt_texts_tokens(made.get(), i, &count);
    texts.push_back({blip2rt_texts_get(made.get(), i), blip2rt_texts_score(made.get(), i),
                     blip2rt_texts_truncated(made.get(), i) != 0, std::vector<int64_t>(tokens, tokens + count)});
  }
  return texts;
}

}  // namespace detail

template <class Handle>
class Owner {
 public:
  explicit Owner(detail::Owned<Handle> handle) : handle_(std::move(handle)) {}
  Handle* get() const { return handle_.get(); }

 private:
  detail::Owned<Handle> handle_;
};

using Image = Owner<blip2rt_image>;
using Features = Owner<blip2rt_features>;

class Chat {
 public:
  explicit Chat(detail::Owned<blip2rt_chat> handle) : handle_(std::move(handle)) {}
  Text ask(const std::string& question, const Options& options = {}, const OnPiece& on_piece = nullptr) {
    return detail::texts_of(on_piece,
                            [&](auto... rest) {
                              return blip2rt_chat_ask(handle_.get(), detail::c_text(question), detail::Strings(options),
                                                      rest...);
                            })
        .front();
  }

 private:
  detail::Owned<blip2rt_chat> handle_;
};

// Any thread may use a model. Functions throw Error.
class Model {
 public:
  Model() : Model(nullptr, Options()) {}
  explicit Model(const std::string& folder, const Options& options = {}) : Model(detail::c_text(folder), options) {}
  explicit Model(const Options& options) : Model(nullptr, options) {}  // nano

  Image image_file(const std::string& path) const {
    return Image(detail::make<blip2rt_image>(
        [&](auto... outputs) { return blip2rt_image_file(handle_.get(), detail::c_text(path), outputs...); }));
  }
  Image image_bytes(std::string_view bytes) const {
    return Image(detail::make<blip2rt_image>(
        [&](auto... outputs) { return blip2rt_image_bytes(handle_.get(), bytes.data(), bytes.size(), outputs...); }));
  }
  Image image_pixels(const void* pixels, size_t width, size_t height, blip2rt_format format,
                     ptrdiff_t stride = 0) const {
    return Image(detail::make<blip2rt_image>([&](auto... outputs) {
      return blip2rt_image_pixels(handle_.get(), pixels, width, height, stride, format, outputs...);
    }));
  }

  Features encode(const Image& image) const {
    return Features(detail::make<blip2rt_features>(
        [&](auto... outputs) { return blip2rt_encode(handle_.get(), image.get(), outputs...); }));
  }
  Features encode_file(const std::string& path) const { return encode(image_file(path)); }

  std::vector<Text> caption(const Features& features, const Options& options = {}, const OnPiece& on_piece = nullptr,
                            const char* prompt = nullptr) const {
    return detail::texts_of(on_piece, [&](auto... rest) {
      return blip2rt_caption(handle_.get(), features.get(), prompt, detail::Strings(options), rest...);
    });
  }
  std::vector<Text> ask(const Features& features, const std::string& question, const Options& options = {},
                        const OnPiece& on_piece = nullptr) const {
    return detail::texts_of(on_piece, [&](auto... rest) {
      return blip2rt_ask(handle_.get(), features.get(), detail::c_text(question), detail::Strings(options), rest...);
    });
  }
  Chat chat(const Features& features, const Options& options = {}) const {
    return Chat(detail::make<blip2rt_chat>([&](auto... outputs) {
      return blip2rt_chat_begin(handle_.get(), features.get(), detail::Strings(options), outputs...);
    }));
  }

  Match match(const Features& features, const std::string& text) const {
    return detail::value_of<Match>([&](Match* match, blip2rt_error** error) {
      return blip2rt_match(handle_.get(), features.get(), detail::c_text(text), &match->score, &match->probability,
                           &match->cosine, error);
    });
  }
  double sees(const Features& features, const std::string& statement) const {
    return detail::value_of<double>([&](auto... outputs) {
      return blip2rt_sees(handle_.get(), features.get(), detail::c_text(statement), outputs...);
    });
  }
  // The number of the choice that answers a question best.
  size_t choose(const Features& features, const std::string& question, const std::vector<std::string>& choices) const {
    return detail::value_of<size_t>([&](auto... outputs) {
      return blip2rt_choose(handle_.get(), features.get(), detail::c_text(question), detail::Strings(choices),
                            outputs...);
    });
  }
  // Labels, with their probabilities as scores. No labels: the everyday ones.
  std::vector<Text> tag(const Features& features, const std::vector<std::string>& labels = {}, size_t top = 10,
                        double threshold = 0.3) const {
    const detail::Strings list(labels);
    const char* const* given = labels.empty() ? nullptr : static_cast<const char* const*>(list);
    return detail::texts_of(nullptr, [&](auto, auto, auto... outputs) {
      return blip2rt_tag(handle_.get(), features.get(), given, top, threshold, outputs...);
    });
  }
  Embedding embed(const Features& features) const {
    return embed([&](float* values, size_t capacity, size_t* rows, size_t* width, blip2rt_error** error) {
      return blip2rt_embed_image(handle_.get(), features.get(), values, capacity, rows, width, error);
    });
  }
  Embedding embed(const std::string& text) const {
    return embed([&](float* values, size_t capacity, size_t* rows, size_t* width, blip2rt_error** error) {
      *rows = 1;
      return blip2rt_embed_text(handle_.get(), detail::c_text(text), values, capacity, width, error);
    });
  }

 private:
  Model(const char* folder, const Options& options)
      : handle_(detail::make<blip2rt_model>(
            [&](auto... outputs) { return blip2rt_load(folder, detail::Strings(options), outputs...); })) {}

  // Asks for the sizes, then for the values.
  template <class Call>
  static Embedding embed(Call call) {
    Embedding result{};
    for (int round = 0; round < 2; ++round) {
      result.values.resize(result.rows * result.width);
      blip2rt_error* error = nullptr;
      const blip2rt_status status = call(result.values.empty() ? nullptr : result.values.data(), result.values.size(),
                                         &result.rows, &result.width, &error);
      detail::check(status, error);
    }
    return result;
  }

  detail::Owned<blip2rt_model> handle_;
};

}  // namespace blip2rt
#endif
