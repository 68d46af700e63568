// The functions of the C API: each looks handles up, checks arguments, and calls the model.
#include <blip2rt.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/system.h"
#include "c/boundary.h"
#include "c/runtime.h"
#include "kernels/dispatch.h"

namespace blip2rt {
namespace {

[[maybe_unused]] const bool kIgnoresEnvironment = !(reads_environment = false);  // a library takes options from callers

OnPiece on_piece_of(blip2rt_callback callback, void* user) {
  if (callback == nullptr) return nullptr;
  return [callback, user](const std::string& piece) { return callback(without_nul(piece).c_str(), user) == 0; };
}

void give_texts(blip2rt_texts** to, Texts texts) {
  for (Text& text : texts) text.text = without_nul(std::move(text.text));
  *to = TextLists::all().add(std::make_shared<Texts>(std::move(texts)));
}

// Strings that end with null.
std::vector<std::string> strings_of(const char* const* texts) {
  std::vector<std::string> all;
  while (*texts != nullptr) all.emplace_back(*texts++);
  return all;
}

// Marks the thread that asks a chat.
class Asking {
 public:
  explicit Asking(OpenChat& chat) : chat_(chat) {
    if (chat.asking == std::this_thread::get_id()) {
      throw argument_error("the callback asks the chat that calls it: ask again when blip2rt_chat_ask has returned");
    }
    lock_ = std::unique_lock(chat.mutex);
    chat.asking = std::this_thread::get_id();
  }
  ~Asking() { chat_.asking = std::thread::id(); }

 private:
  OpenChat& chat_;
  std::unique_lock<std::mutex> lock_;
};

std::shared_ptr<const Text> text_at(blip2rt_texts* texts, size_t index) {
  const std::shared_ptr<Texts> found = TextLists::all().find(texts);
  if (found == nullptr || index >= found->size()) return nullptr;
  return {found, &(*found)[index]};
}

void write_floats(const Tensor& tensor, float* values, size_t capacity) {
  if (values == nullptr) return;
  const size_t count = tensor.values.size();
  if (capacity < count) {
    throw argument_error("capacity is " + std::to_string(capacity) + ", but there are " + std::to_string(count) +
                         " values: pass NULL first to ask for the sizes");
  }
  std::copy(tensor.values.begin(), tensor.values.end(), values);
}

template <class Make>
blip2rt_status make_image(blip2rt_model* model, blip2rt_image** image, blip2rt_error** error, Make make) {
  return guarded(error, [&] {
    clear(image, "image");
    const auto opened = object_of<Models>(model, "model");
    give<Images>(image, std::make_shared<PreparedImage>(make(*opened)));
  });
}

}  // namespace
}  // namespace blip2rt

using namespace blip2rt;

extern "C" {

uint32_t blip2rt_abi_version(void) { return BLIP2RT_ABI_VERSION; }

const char* blip2rt_version(void) { return BLIP2RT_VERSION; }

blip2rt_status blip2rt_load(const char* folder, const char* const* options, blip2rt_model** model,
                            blip2rt_error** error) {
  return guarded(error, [&] {
    clear(model, "model");
    std::string runtime;
    ModelOptions chosen = load_options(options, runtime);
    const std::string path = folder == nullptr ? own_folder() + BLIP2RT_NANO : folder;
    if (path.empty()) throw Error(ErrorKind::kModel, "the bundle is '': give its folder, or NULL for nano");
    chosen.find_onnxruntime = [runtime] { return load_runtime(runtime); };
    give<Models>(model, std::make_shared<Model>(path, chosen));
  });
}

void blip2rt_model_free(blip2rt_model* model) { Models::all().remove(model); }

blip2rt_status blip2rt_image_file(blip2rt_model* model, const char* path, blip2rt_image** image,
                                  blip2rt_error** error) {
  return make_image(model, image, error, [&](const Model& of) { return of.image_file(given(path, "path")); });
}

blip2rt_status blip2rt_image_bytes(blip2rt_model* model, const void* bytes, size_t size, blip2rt_image** image,
                                   blip2rt_error** error) {
  return make_image(model, image, error, [&](const Model& of) {
    return of.image_bytes({static_cast<const char*>(given(bytes, "bytes")), size});
  });
}

blip2rt_status blip2rt_image_pixels(blip2rt_model* model, const void* pixels, size_t width, size_t height,
                                    ptrdiff_t stride, blip2rt_format format, blip2rt_image** image,
                                    blip2rt_error** error) {
  return make_image(model, image, error, [&](const Model& of) {
    given(pixels, "pixels");
    const auto kind = static_cast<int>(format);
    if (kind < BLIP2RT_RGB || kind > BLIP2RT_BGRA) {
      throw argument_error("format is " + std::to_string(kind) + ": give one of blip2rt_format");
    }
    if (width == 0 || height == 0 || width > kMaxSide || height > kMaxSide) {
      throw ImageError("the image has " + std::to_string(width) + " x " + std::to_string(height) +
                       " pixels: give 1 to 65,535 a side");
    }
    const size_t row = width * (kind < BLIP2RT_RGBA ? 3 : 4);
    const size_t step = stride < 0 ? -static_cast<size_t>(stride) : static_cast<size_t>(stride);
    if (stride != 0 && step < row) {
      throw argument_error("stride is " + std::to_string(stride) + ", but a row has " + std::to_string(row) + " bytes");
    }
    return of.image_pixels(static_cast<const uint8_t*>(pixels), {width, height},
                           stride == 0 ? static_cast<ptrdiff_t>(row) : stride, static_cast<PixelFormat>(kind));
  });
}

void blip2rt_image_free(blip2rt_image* image) { Images::all().remove(image); }

blip2rt_status blip2rt_encode(blip2rt_model* model, blip2rt_image* image, blip2rt_features** features,
                              blip2rt_error** error) {
  return guarded(error, [&] {
    clear(features, "features");
    const auto opened = object_of<Models>(model, "model");
    give<FeatureSets>(features, std::shared_ptr<Features>(opened->encode(*object_of<Images>(image, "image"))));
  });
}

void blip2rt_features_free(blip2rt_features* features) { FeatureSets::all().remove(features); }

blip2rt_status blip2rt_caption(blip2rt_model* model, blip2rt_features* features, const char* prompt,
                               const char* const* options, blip2rt_callback callback, void* user, blip2rt_texts** texts,
                               blip2rt_error** error) {
  return guarded(error, [&] {
    clear(texts, "texts");
    const auto opened = object_of<Models>(model, "model");
    const auto of = object_of<FeatureSets>(features, "features");
    const std::string text = prompt == nullptr ? "" : prompt;
    give_texts(texts, opened->caption(*of, prompt == nullptr ? nullptr : &text, CallerOptions(options, true),
                                      on_piece_of(callback, user)));
  });
}

blip2rt_status blip2rt_ask(blip2rt_model* model, blip2rt_features* features, const char* question,
                           const char* const* options, blip2rt_callback callback, void* user, blip2rt_texts** texts,
                           blip2rt_error** error) {
  return guarded(error, [&] {
    clear(texts, "texts");
    const auto opened = object_of<Models>(model, "model");
    const auto of = object_of<FeatureSets>(features, "features");
    give_texts(texts, opened->ask(*of, given(question, "question"), CallerOptions(options, false),
                                  on_piece_of(callback, user)));
  });
}

blip2rt_status blip2rt_chat_begin(blip2rt_model* model, blip2rt_features* features, const char* const* options,
                                  blip2rt_chat** chat, blip2rt_error** error) {
  return guarded(error, [&] {
    clear(chat, "chat");
    auto opened = std::make_shared<OpenChat>();
    opened->model = object_of<Models>(model, "model");
    const auto of = object_of<FeatureSets>(features, "features");
    opened->conversation = opened->model->chat(of, CallerOptions(options, false));
    give<Chats>(chat, std::move(opened));
  });
}

blip2rt_status blip2rt_chat_ask(blip2rt_chat* chat, const char* question, const char* const* options,
                                blip2rt_callback callback, void* user, blip2rt_texts** texts, blip2rt_error** error) {
  return guarded(error, [&] {
    clear(texts, "texts");
    const auto opened = object_of<Chats>(chat, "chat");
    given(question, "question");
    const Asking asking(*opened);
    give_texts(texts, opened->conversation->ask(question, CallerOptions(options, false), on_piece_of(callback, user)));
  });
}

void blip2rt_chat_free(blip2rt_chat* chat) { Chats::all().remove(chat); }

size_t blip2rt_texts_count(blip2rt_texts* texts) {
  const auto found = TextLists::all().find(texts);
  return found == nullptr ? 0 : found->size();
}

const char* blip2rt_texts_get(blip2rt_texts* texts, size_t index) {
  const auto text = text_at(texts, index);
  return text == nullptr ? nullptr : text->text.c_str();
}

double blip2rt_texts_score(blip2rt_texts* texts, size_t index) {
  const auto text = text_at(texts, index);
  return text == nullptr ? 0 : text->score;
}

int blip2rt_texts_truncated(blip2rt_texts* texts, size_t index) {
  const auto text = text_at(texts, index);
  return text != nullptr && text->truncated ? 1 : 0;
}

const int64_t* blip2rt_texts_tokens(blip2rt_texts* texts, size_t index, size_t* count) {
  const auto text = text_at(texts, index);
  if (count != nullptr) *count = text == nullptr ? 0 : text->tokens.size();
  return text == nullptr ? nullptr : text->tokens.data();
}

void blip2rt_texts_free(blip2rt_texts* texts) { TextLists::all().remove(texts); }

blip2rt_status blip2rt_match(blip2rt_model* model, blip2rt_features* features, const char* text, double* score,
                             double* probability, double* cosine, blip2rt_error** error) {
  return guarded(error, [&] {
    const auto opened = object_of<Models>(model, "model");
    const auto of = object_of<FeatureSets>(features, "features");
    const Match match = opened->match(*of, given(text, "text"));
    if (score != nullptr) *score = match.score;
    if (probability != nullptr) *probability = match.probability;
    if (cosine != nullptr) *cosine = match.cosine;
  });
}

blip2rt_status blip2rt_sees(blip2rt_model* model, blip2rt_features* features, const char* statement,
                            double* probability, blip2rt_error** error) {
  return guarded(error, [&] {
    const auto opened = object_of<Models>(model, "model");
    const auto of = object_of<FeatureSets>(features, "features");
    *given(probability, "probability") = opened->sees(*of, given(statement, "statement"));
  });
}

blip2rt_status blip2rt_confidence(blip2rt_model* model, blip2rt_features* features, blip2rt_texts* captions,
                                  size_t index, double* probability, blip2rt_error** error) {
  return guarded(error, [&] {
    const auto opened = object_of<Models>(model, "model");
    const auto of = object_of<FeatureSets>(features, "features");
    object_of<TextLists>(captions, "texts");
    const auto caption = text_at(captions, index);
    if (caption == nullptr) throw argument_error("index is " + std::to_string(index) + ": there are fewer captions");
    *given(probability, "probability") = opened->confidence(*of, *caption);
  });
}

blip2rt_status blip2rt_choose(blip2rt_model* model, blip2rt_features* features, const char* question,
                              const char* const* choices, size_t* index, blip2rt_error** error) {
  return guarded(error, [&] {
    const auto opened = object_of<Models>(model, "model");
    const auto of = object_of<FeatureSets>(features, "features");
    given(question, "question");
    *given(index, "index") = opened->choose(*of, question, strings_of(given(choices, "choices")));
  });
}

blip2rt_status blip2rt_tag(blip2rt_model* model, blip2rt_features* features, const char* const* labels, size_t top,
                           double threshold, blip2rt_texts** tags, blip2rt_error** error) {
  return guarded(error, [&] {
    clear(tags, "tags");
    const auto opened = object_of<Models>(model, "model");
    const auto of = object_of<FeatureSets>(features, "features");
    Faults faults;
    if (top == 0) faults.emplace_back("top is 0: give a number of labels, 1 or more");
    if (!(threshold >= 0 && threshold <= 1)) {
      faults.push_back("threshold is " + std::to_string(threshold) + ": give a probability from 0 to 1");
    }
    if (!faults.empty()) throw Error(ErrorKind::kArgument, std::move(faults));
    const auto list = labels == nullptr ? Labels::everyday() : std::make_shared<const Labels>(strings_of(labels));
    give_texts(tags, opened->tag(*of, list, top, threshold));
  });
}

blip2rt_status blip2rt_embed_image(blip2rt_model* model, blip2rt_features* features, float* values, size_t capacity,
                                   size_t* rows, size_t* width, blip2rt_error** error) {
  return guarded(error, [&] {
    const auto opened = object_of<Models>(model, "model");
    const Tensor embeds = opened->embed_image(*object_of<FeatureSets>(features, "features"));
    const auto size = static_cast<size_t>(embeds.shape.empty() ? 0 : embeds.shape.back());
    if (width != nullptr) *width = size;
    if (rows != nullptr) *rows = size == 0 ? 0 : embeds.values.size() / size;
    write_floats(embeds, values, capacity);
  });
}

blip2rt_status blip2rt_embed_text(blip2rt_model* model, const char* text, float* values, size_t capacity, size_t* width,
                                  blip2rt_error** error) {
  return guarded(error, [&] {
    const auto opened = object_of<Models>(model, "model");
    const Tensor embeds = opened->embed_text(given(text, "text"));
    if (width != nullptr) *width = embeds.values.size();
    write_floats(embeds, values, capacity);
  });
}

const char* blip2rt_error_message(blip2rt_error* error) {
  const auto found = Reports::all().find(error);
  return found == nullptr ? nullptr : found->message.c_str();
}

blip2rt_status blip2rt_error_status(blip2rt_error* error) {
  const auto found = Reports::all().find(error);
  return found == nullptr ? BLIP2RT_OK : found->status;
}

size_t blip2rt_error_count(blip2rt_error* error) {
  const auto found = Reports::all().find(error);
  return found == nullptr ? 0 : found->faults.size();
}

const char* blip2rt_error_fault(blip2rt_error* error, size_t index) {
  const auto found = Reports::all().find(error);
  return found == nullptr || index >= found->faults.size() ? nullptr : found->faults[index].c_str();
}

void blip2rt_error_free(blip2rt_error* error) { Reports::all().remove(error); }

}  // extern "C"
