// Runs the graphs of a judge.
#include <algorithm>
#include <cstring>
#include <utility>

#include "loop/likelihood.h"
#include "runtime/judge.h"

namespace blip2rt {
namespace {

constexpr size_t kBatch = 8;       // images or texts that a graph reads together
constexpr size_t kLabelLists = 4;  // whose embeddings are kept

// Some rows of a tensor: borrowed if they follow each other, else copied.
class SomeRows {
 public:
  SomeRows(const TensorView& tensor, const size_t* numbers, size_t count) : view_(tensor) {
    const size_t size = tensor.axes[0] == 0 ? 0 : tensor.count() / tensor.size(0);
    const auto* from = tensor.as<const float>();
    bool follow = true;
    for (size_t i = 1; i < count; ++i) follow = follow && numbers[i] == numbers[0] + i;
    if (follow) {
      view_.data = const_cast<float*>(from + numbers[0] * size);
    } else {
      copy_.reserve(product_of(count, size));
      for (size_t i = 0; i < count; ++i) {
        copy_.insert(copy_.end(), from + numbers[i] * size, from + (numbers[i] + 1) * size);
      }
      view_.data = copy_.data();
    }
    view_.axes[0] = static_cast<int64_t>(count);
  }
  SomeRows(const SomeRows&) = delete;
  SomeRows& operator=(const SomeRows&) = delete;

  const TensorView& view() const { return view_; }

 private:
  TensorView view_;
  std::vector<float> copy_;
};

void append(Tensor& all, const Tensor& more) {
  if (all.shape.empty()) {
    all = more;
    return;
  }
  all.values.insert(all.values.end(), more.values.begin(), more.values.end());
  all.shape[0] += more.shape[0];
}

// Token ids of texts, padded to the longest.
struct TokenRows {
  TokenRows(const QFormerTokenizer& tokenizer, const std::string* texts, size_t count) : count(count) {
    std::vector<Ids> all;
    size_t longest = 0;
    for (size_t i = 0; i < count; ++i) longest = std::max(longest, all.emplace_back(tokenizer.encode(texts[i])).size());
    for (const Ids& row : all) {
      ids.insert(ids.end(), row.begin(), row.end());
      ids.insert(ids.end(), longest - row.size(), tokenizer.spec().pad_token_id);
      mask.insert(mask.end(), row.size(), 1);
      mask.insert(mask.end(), longest - row.size(), 0);
    }
  }

  void feed(std::vector<Feed>& feeds) const {
    feeds.emplace_back("token_ids", ids, count);
    feeds.emplace_back("text_mask", mask, count);
  }

  size_t count;
  Ids ids, mask;  // (count, longest)
};

}  // namespace

std::unique_ptr<QFormerTokenizer> Judge::tokenizer_of(const QFormerTextSpec& spec) const {
  const std::string file = bundle_.file(spec.tokenizer);
  return std::make_unique<QFormerTokenizer>(file, open_tokenizer(file), spec, special_tokens_);
}

const QFormerTokenizer& Judge::tokenizer() {
  return *text_tokenizer_.get([this] { return tokenizer_of(*bundle_.manifest.retrieval); });
}

const Tensor& Judge::image_embeds(Features& features) {
  bundle_.require({"image_embed"}, "embed_image");
  return features.image_embeds.get(
      [&] { return graphs_.run("image_embed", "image_embeds", {Feed("vision_features", features.vision)}); });
}

Tensor Judge::prefix_embeds(Features& features, const Strings& questions) {
  const auto run = [&] {
    std::vector<Feed> feeds = {Feed("vision_features", features.vision)};
    std::optional<TokenRows> rows;
    if (bundle_.manifest.question) {
      const auto& tokenizer = question_tokenizer_.get([this] { return tokenizer_of(*bundle_.manifest.question); });
      rows.emplace(*tokenizer, questions.data(), questions.size());
      rows->feed(feeds);
    }
    return graphs_.run("qformer", "prefix_embeds", feeds);
  };
  return bundle_.manifest.question ? run() : features.prefix_embeds.get(run);
}

Tensor Judge::caption_prefix(Features& features) {
  bundle_.require(kGenerative, "make prefix_embeds");
  const auto images = static_cast<size_t>(features.vision.axes[0]);
  return prefix_embeds(features, Strings(images, language_().caption_prompt(nullptr).whole()));
}

Tensor Judge::text_embeds(const Strings& texts) {
  bundle_.require({"text_embed"}, "embed_text");
  Tensor all;
  for (size_t start = 0; start < texts.size(); start += kBatch) {
    const TokenRows rows(tokenizer(), &texts[start], std::min(kBatch, texts.size() - start));
    std::vector<Feed> feeds;
    rows.feed(feeds);
    append(all, graphs_.run("text_embed", "text_embeds", feeds));
  }
  return all;
}

std::shared_ptr<const Tensor> Judge::label_embeds(const Labels& labels) {
  Strings texts = embedded_texts(labels);
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [known, embeds] : label_embeds_) {
      if (known == texts) return embeds;
    }
  }
  auto embeds = std::make_shared<const Tensor>(text_embeds(texts));
  const std::lock_guard lock(mutex_);
  if (label_embeds_.size() == kLabelLists) label_embeds_.erase(label_embeds_.begin());
  label_embeds_.emplace_back(std::move(texts), embeds);
  return embeds;
}

Tensor Judge::itm_logits(const Features& features, const Images& images, const Strings& texts) {
  bundle_.require(kRetrieval, "match");
  Tensor all;
  for (size_t start = 0; start < texts.size(); start += kBatch) {
    const size_t count = std::min(kBatch, texts.size() - start);
    const TokenRows rows(tokenizer(), &texts[start], count);
    const SomeRows vision(features.vision, &images.at(start), count);
    std::vector<Feed> feeds = {Feed("vision_features", vision.view())};
    rows.feed(feeds);
    append(all, graphs_.run("itm", "itm_logits", feeds));
  }
  return all;
}

const Tensor* Judge::mean_prefix() {
  const std::optional<RetrievalSpec>& retrieval = bundle_.manifest.retrieval;
  if (!retrieval || !retrieval->mean_prefix || !bundle_.manifest.llm) return nullptr;
  return &mean_prefix_.get([&] {
    const LlmSpec& llm = *bundle_.manifest.llm;
    Tensor mean{{1, llm.prefix_length, llm.hidden_size}, {}};
    mean.values.resize(static_cast<size_t>(llm.prefix_length * llm.hidden_size));
    const std::string bytes = read_regular(bundle_.file(*retrieval->mean_prefix), UINT32_MAX);
    std::memcpy(mean.values.data(), bytes.data(), std::min(bytes.size(), 4 * mean.values.size()));
    return mean;
  });
}

Judge::Compared Judge::likelihoods(Features& features, const Images& images, const Strings& texts) {
  require_likelihood("tell how likely a text is");
  Strings written;
  for (const std::string& text : texts) written.push_back(tokenizer().written(text));
  const auto [prompt, ids] = language_().caption_tokens(written, bundle_.manifest.llm->prefix_length,
                                                        bundle_.manifest.retrieval->max_text_length);
  return compared(features, gain_.texts(static_cast<size_t>(features.vision.axes[0]), images, prompt, ids));
}

Judge::Compared Judge::yes_odds(Features& features, const Images& images, const Strings& questions) {
  require_likelihood("weigh yes against no");
  const Language& language = language_();
  std::vector<Ids> asked, answers;
  for (const std::string& question : questions) {
    asked.push_back(language.tokenizer().encode(language.ask_prompt(question)));
  }
  for (const char* answer : {" yes", " no"}) answers.push_back(language.tokenizer().encode_more({"", answer, ""}));
  return compared(features, gain_.questions(static_cast<size_t>(features.vision.axes[0]), images, asked, answers,
                                            !bundle_.manifest.llm->encoder_decoder));
}

Judge::Compared Judge::compared(Features& features, const GainRun& run) {
  const Tensor prefix = caption_prefix(features);
  std::vector<const float*> prefixes;
  for (const size_t image : run.prefixes) {
    prefixes.push_back(image < prefix.rows() ? prefix.row(image) : mean_prefix()->values.data());
  }
  return gain_.finish(run, log_probabilities(prefixes, run.prompts, run.images, run.texts));
}

// log p(text | image, prompt) of texts: each prompt's prefix_embeds (Q, D); `images`: the prompt of each text.
std::vector<double> Judge::log_probabilities(const std::vector<const float*>& prefixes, const std::vector<Ids>& prompts,
                                             const Images& images, const std::vector<Ids>& texts) {
  const LlmSpec& llm = *bundle_.manifest.llm;
  const auto size = static_cast<size_t>(llm.prefix_length * llm.hidden_size);
  std::vector<float> embeds;
  for (const float* prefix : prefixes) embeds.insert(embeds.end(), prefix, prefix + size);
  const Prefix prefix{embeds.data(), static_cast<int>(prefixes.size()), static_cast<int>(llm.prefix_length)};
  const std::shared_ptr<const Generator> generator = graphs_.generator();
  return named_failure([&] {
    return blip2rt::likelihoods(*generator, prefix, prompts, images, texts, [this] { graphs_.check_signals(); });
  });
}

void Judge::require_likelihood(const std::string& action) const {
  Strings needed = kRetrieval;
  needed.insert(needed.end(), kGenerative.begin(), kGenerative.end());
  bundle_.require(needed, action);
  if (bundle_.manifest.retrieval->mean_prefix) return;
  throw Error(ErrorKind::kCapability, "bundle '" + bundle_.manifest.name + "' cannot " + action +
                                          ": it lacks retrieval.mean_prefix; blip2rt-train calibrate adds it");
}

}  // namespace blip2rt
