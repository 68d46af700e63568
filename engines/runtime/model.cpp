// Runs the graphs in the order in which data flow through them.
#include "runtime/model.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/utf8.h"
#include "english/answer_words.h"
#include "executor/core_graph.h"

namespace blip2rt {
namespace {

uint64_t next_number() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

// RGB (height, width, 3) -> pixels (1, 3, height, width): / 255, - mean, / std, rounded after each step as numpy does.
Tensor normalized(const std::vector<uint8_t>& rgb, const ImageSpec& spec) {
  const size_t area = rgb.size() / 3;
  Tensor pixels{{1, 3, spec.height, spec.width}, std::vector<float>(rgb.size())};
  for (size_t channel = 0; channel < 3; ++channel) {
    const auto mean = static_cast<float>(spec.mean[channel]), std = static_cast<float>(spec.std[channel]);
    float* to = &pixels.values[channel * area];
    for (size_t i = 0; i < area; ++i) {
      const float scaled = static_cast<float>(rgb[3 * i + channel]) * (1.0F / 255);
      to[i] = (scaled - mean) / std;
    }
  }
  return pixels;
}

std::optional<Calibrator> calibrator_of(const Manifest& manifest) {
  if (!manifest.retrieval) return std::nullopt;
  return Calibrator(*manifest.retrieval, manifest.calibration);
}

// The rows of a tensor, and their width.
std::pair<size_t, size_t> rows_of(const Tensor& tensor) {
  const auto width = static_cast<size_t>(tensor.shape.empty() ? 0 : tensor.shape.back());
  return {width == 0 ? 0 : tensor.values.size() / width, width};
}

// Whether the executor runs a bundle's graphs. Loads ONNX Runtime otherwise.
bool chooses_core(const Manifest& manifest, const ModelOptions& options) {
  std::vector<std::string> precisions;
  for (const auto& [name, component] : manifest.components) precisions.push_back(component.precision);
  return options.core.value_or(prefers_executor(precisions)) || !options.find_onnxruntime();
}

Bundle opened(const std::string& folder) {
  Bundle bundle = parse_bundle(folder, manifest_bytes(folder));
  if (bundle.manifest.target != "ort") {
    throw Error(ErrorKind::kModel, folder + " was exported for " + bundle.manifest.target +
                                       ", which this library cannot run: export it with blip2rt-export --target ort");
  }
  check_files(bundle);
  check_tensors(bundle);
  return bundle;
}

}  // namespace

Model::Model(const std::string& folder, const ModelOptions& options)
    : bundle_(opened(folder)),
      options_(options),
      number_(next_number()),
      graphs_(bundle_, options.threads, options.trusted_graphs, chooses_core(bundle_.manifest, options)),
      calibrator_(calibrator_of(bundle_.manifest)) {
  if (!options.verify) return;
  verify(bundle_);
  check_tokenizers(bundle_);
}

ImageTarget Model::target() const {
  const ImageSpec& spec = bundle_.manifest.image;
  return {{static_cast<size_t>(spec.width), static_cast<size_t>(spec.height)}, spec.resample};
}

PreparedImage Model::image_file(const std::string& path) const {
  return {number_, prepare_file(path, target(), options_.images)};
}

PreparedImage Model::image_bytes(std::string_view bytes) const {
  return {number_, prepare_bytes(bytes, target(), options_.images)};
}

PreparedImage Model::image_pixels(const uint8_t* pixels, Size size, ptrdiff_t stride, PixelFormat format) const {
  return {number_, prepare_pixels(pixels, size, stride, format, target())};
}

void Model::require_own(uint64_t model, const char* what) const {
  if (model == number_) return;
  throw Error(ErrorKind::kArgument, std::string(what) + " of another model: make one with this model");
}

LanguageModel& Model::language() {
  return *language_.get([this] {
    graphs_.release_weights("vision");  // memory peaks while the language model is opened
    return std::make_unique<LanguageModel>(bundle_, graphs_, options_.special_tokens);
  });
}

std::unique_ptr<QFormerTokenizer> Model::tokenizer_of(const QFormerTextSpec& spec) const {
  const std::string file = bundle_.file(spec.tokenizer);
  return std::make_unique<QFormerTokenizer>(file, open_tokenizer(file), spec, options_.special_tokens);
}

const QFormerTokenizer& Model::text_tokenizer() {
  return *text_tokenizer_.get([this] { return tokenizer_of(*bundle_.manifest.retrieval); });
}

std::unique_ptr<Features> Model::encode(const PreparedImage& image) {
  require_own(image.model, "the image is");
  auto features = std::make_unique<Features>();
  features->model = number_;
  const Tensor pixels = normalized(image.rgb, bundle_.manifest.image);
  std::vector<Feed> feeds;
  feeds.emplace_back("pixels", pixels);
  features->vision = graphs_.run("vision", "vision_features", feeds);
  return features;
}

// `question`: what a Q-Former that reads questions reads with the image.
Tensor Model::prefix_embeds(Features& features, const std::string& question) {
  const std::lock_guard lock(features.mutex);
  if (features.prefix_embeds) return *features.prefix_embeds;
  std::vector<Feed> feeds;
  feeds.emplace_back("vision_features", features.vision);
  Ids ids, mask;
  if (bundle_.manifest.question) {
    ids = question_tokenizer_.get([this] { return tokenizer_of(*bundle_.manifest.question); })->encode(question);
    mask.assign(ids.size(), 1);
    feeds.emplace_back("token_ids", ids);
    feeds.emplace_back("text_mask", mask);
  }
  Tensor embeds = graphs_.run("qformer", "prefix_embeds", feeds);
  if (!bundle_.manifest.question) features.prefix_embeds = embeds;
  return embeds;
}

Texts Model::caption(Features& features, const std::string* prompt, const CallerOptions& options,
                     const OnPiece& on_piece) {
  bundle_.require(kGenerative, "caption");
  require_own(features.model, "the features are");
  const Clock::time_point start = Clock::now();
  const LanguageModel& language = this->language();
  const Prompt text = language.caption_prompt(prompt);
  Task task{text, language.settings("caption", options, {text}), !options.raw()};
  if (const std::shared_ptr<const CaptionPool> pool = pool_for(task, options.pool())) {
    const Tensor embeds = embed_image(features);
    const std::pair<size_t, size_t> rows = rows_of(embeds);
    const int64_t end = language.spec().eos_token_ids.front();
    task.options.guides = {
        named_failure([&] { return pool->guide(embeds.values.data(), rows.first, rows.second, end); })};
  }
  return language.generate(prefix_embeds(features, text.whole()), task, start, on_piece);
}

// The pool that guides a caption. `option`: a file, "false" or, if empty, the bundle's own unless there is a prompt or
// sampling.
std::shared_ptr<const CaptionPool> Model::pool_for(const Task& task, const std::string& option) {
  if (option == "false") return nullptr;
  if (!option.empty()) {
    bundle_.require(kRetrieval, "guide captions by a pool");
    language().need_guidable(task.prompt);
    try {
      std::shared_ptr<const CaptionPool> pool = CaptionPool::open(option);
      const std::shared_ptr<const CaptionPool> own = own_pool();  // tells which model this is
      if (own && own->fingerprint() != pool->fingerprint()) throw std::runtime_error("it is of another model");
      return pool;
    } catch (const std::runtime_error& error) {
      throw Error(ErrorKind::kArgument, "cannot use the pool " + quoted(option) + ": " + error.what() +
                                            "; build it again with blip2rt pool build");
    }
  }
  return task.prompt.text.empty() && !task.options.do_sample ? own_pool() : nullptr;
}

// The bundle's pool; null if it has none.
std::shared_ptr<const CaptionPool> Model::own_pool() {
  const std::optional<RetrievalSpec>& retrieval = bundle_.manifest.retrieval;
  if (!retrieval || !retrieval->pool) return nullptr;
  return pool_.get([&] { return named_failure([&] { return CaptionPool::open(bundle_.file(*retrieval->pool)); }); });
}

Texts Model::ask(Features& features, const std::string& question, const CallerOptions& options,
                 const OnPiece& on_piece) {
  bundle_.require(kGenerative, "ask");
  require_own(features.model, "the features are");
  const Clock::time_point start = Clock::now();
  const LanguageModel& language = this->language();
  const Prompt prompt = language.ask_prompt(judges() ? language.plain_question(question) : question);
  Task task{prompt, language.settings("ask", options, {prompt}), false};
  if (std::optional<Text> text = short_answer(features, prompt.text, task.options)) {
    if (on_piece) on_piece(text->text);
    return {std::move(*text)};
  }
  guide_answer(features, task);
  return language.generate(prefix_embeds(features, language.qformer_question(prompt.text)), task, start, on_piece);
}

// Lets the bundle's pool guide the answer to a question, unless it is sampled or begins with a forced prefix.
void Model::guide_answer(const Features& features, Task& task) {
  const std::shared_ptr<const CaptionPool> pool = own_pool();
  if (pool == nullptr || task.options.do_sample || !task.options.forced_prefix.empty()) return;
  const LanguageModel& language = this->language();
  const Ids ids = language.tokenizer().encode_more({"", " " + task.prompt.text, ""});
  const TokenText asked(ids.begin(), ids.end());
  const auto vocabulary = asks_for_plural(task.prompt.text) ? language.tokenizer().vocabulary() : nullptr;
  const Tensor embeds = embed_image(features);
  const std::pair<size_t, size_t> rows = rows_of(embeds);
  task.options.guides = {named_failure([&] {
    return pool->answer_guide(embeds.values.data(), rows.first, rows.second, task.prompt.text, asked, vocabulary.get());
  })};
}

std::unique_ptr<Conversation> Model::chat(const std::shared_ptr<Features>& features, const CallerOptions& options) {
  bundle_.require(kGenerative, "chat");
  require_own(features->model, "the features are");
  const LanguageModel& language = this->language();
  language.need_chat();
  const AnswerOrGuide answer = [this, features](Task& task) {
    std::optional<Text> text = short_answer(*features, task.prompt.text, task.options);
    if (!text) guide_answer(*features, task);
    return text;
  };
  return std::make_unique<Conversation>(language, prefix_embeds(*features, ""), options, answer, judges());
}

Tensor Model::embed_image(const Features& features) {
  bundle_.require({"image_embed"}, "embed_image");
  require_own(features.model, "the features are");
  std::vector<Feed> feeds;
  feeds.emplace_back("vision_features", features.vision);
  return graphs_.run("image_embed", "image_embeds", feeds);
}

Tensor Model::embed_text(const std::string& text) {
  bundle_.require({"text_embed"}, "embed_text");
  return embed_texts({text});
}

}  // namespace blip2rt
