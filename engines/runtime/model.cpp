// Runs the graphs in the order in which data flow through them.
#include "runtime/model.h"

#include <atomic>
#include <utility>

#include "base/utf8.h"
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
      graphs_(bundle_, options.graphs, chooses_core(bundle_.manifest, options)),
      judge_(bundle_, graphs_, [this]() -> const Language& { return language(); }, options.special_tokens) {
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

std::unique_ptr<Features> Model::encode(const PreparedImage& image) {
  require_own(image.model, "the image is");
  auto features = std::make_unique<Features>();
  features->model = number_;
  const Tensor pixels = normalized(image.rgb, bundle_.manifest.image);
  const auto vision = std::make_shared<Tensor>(graphs_.run("vision", "vision_features", {Feed("pixels", pixels)}));
  features->vision = {vision->values.data(), vision->shape};
  features->memory = vision;
  return features;
}

// `question`: what a Q-Former that reads questions reads with the image.
Tensor Model::prefix_embeds(Features& features, const std::string& question) {
  return judge_.prefix_embeds(features, {question});
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
    task.options.guides = judge_.caption_guides(*pool, features);
  }
  return language.generate(prefix_embeds(features, text.whole()), task, start, on_piece);
}

// The pool that guides a caption. `option`: a file, "none" or, if empty, the bundle's own unless there is a prompt or
// sampling.
std::shared_ptr<const CaptionPool> Model::pool_for(const Task& task, const std::string& option) {
  if (option == "none") return nullptr;
  if (!option.empty()) {
    bundle_.require(kRetrieval, "guide captions by a pool");
    language().need_guidable(task.prompt);
    try {
      std::shared_ptr<const CaptionPool> pool = CaptionPool::open(option);
      const std::shared_ptr<const CaptionPool> own = judge_.own_pool();  // tells which model this is
      if (own && own->fingerprint() != pool->fingerprint()) throw std::runtime_error("it is of another model");
      return pool;
    } catch (const std::runtime_error& error) {
      throw Error(ErrorKind::kArgument, "cannot use the pool " + quoted(option) + ": " + error.what() +
                                            "; build it again with blip2rt pool build");
    }
  }
  return task.prompt.text.empty() && !task.options.do_sample ? judge_.own_pool() : nullptr;
}

Texts Model::ask(Features& features, const std::string& question, const CallerOptions& options,
                 const OnPiece& on_piece) {
  bundle_.require(kGenerative, "ask");
  require_own(features.model, "the features are");
  const Clock::time_point start = Clock::now();
  const LanguageModel& language = this->language();
  const Prompt prompt = language.ask_prompt(judge_.rates_statements() ? language.plain_question(question) : question);
  Task task{prompt, language.settings("ask", options, {prompt}), false};
  if (std::optional<Text> text = short_answer(features, prompt.text, task.options)) {
    if (on_piece) on_piece(text->text);
    return {std::move(*text)};
  }
  guide_answer(features, task);
  return language.generate(prefix_embeds(features, language.qformer_question(prompt.text)), task, start, on_piece);
}

// Lets the bundle's pool guide the answer to a question, unless it is sampled or begins with a forced prefix.
void Model::guide_answer(Features& features, Task& task) {
  if (judge_.own_pool() == nullptr || task.options.do_sample || !task.options.forced_prefix.empty()) return;
  task.options.guides = judge_.answer_guides(features, {0}, {task.prompt.text});
}

// The answer to a short question; its score is its log-probability.
std::optional<Text> Model::short_answer(Features& features, const std::string& question,
                                        const GenerationOptions& options) {
  const std::optional<ShortQuestion> asked = judge_.short_question(question, options);
  if (!asked) return std::nullopt;
  return judge_.short_answers(features, {0}, {*asked}).front();
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
  return std::make_unique<Conversation>(language, prefix_embeds(*features, ""), options, answer,
                                        judge_.rates_statements());
}

Match Model::match(Features& features, const std::string& text) {
  bundle_.require(kRetrieval, "match");
  require_own(features.model, "the features are");
  check_words(text);
  return judge_.match(features, {0}, {text}).front();
}

double Model::sees(Features& features, const std::string& statement) {
  judge_.require_statements("judge what it sees");
  require_own(features.model, "the features are");
  check_words(statement);
  return judge_.probabilities(features, {0}, {statement}).front();
}

double Model::confidence(Features& features, const Text& caption) {
  judge_.require_confidence();
  require_own(features.model, "the features are");
  return judge_.confidence(features, {0}, {caption}).front();
}

size_t Model::choose(Features& features, const std::string& question, const std::vector<std::string>& choices) {
  bundle_.require(kGenerative, "choose");
  require_own(features.model, "the features are");
  for (const std::string& choice : choices) check_words(choice);
  if (choices.empty()) throw Error(ErrorKind::kArgument, "there are no choices: give one or more");
  return judge_.choose(features, 0, question, choices);
}

Texts Model::tag(Features& features, const std::shared_ptr<const Labels>& labels, size_t top, double threshold) {
  const Tagger tagger = judge_.tagger(labels, top, threshold);
  require_own(features.model, "the features are");
  std::vector<std::string> captions;
  if (tagger.reads_captions()) captions = {caption(features, nullptr, CallerOptions(), nullptr).front().text};
  const std::vector<Tag> found = judge_.tags(tagger, features, captions).front();
  Texts tags;
  for (const Tag& tag : found) {
    const Label& label = labels->all()[tag.label];
    std::vector<std::string> parts = label.parents;
    parts.push_back(label.name);
    tags.push_back({joined(parts, "|"), tag.probability, {}, false});
  }
  return tags;
}

Tensor Model::embed_image(Features& features) {
  require_own(features.model, "the features are");
  return judge_.image_embeds(features);
}

Tensor Model::embed_text(const std::string& text) { return judge_.text_embeds({text}); }

}  // namespace blip2rt
