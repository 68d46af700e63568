// Runs the graphs for matches, short answers, labels and choices, which other files here weigh.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "english/questions.h"
#include "english/statements.h"
#include "english/text_forms.h"
#include "runtime/model.h"

namespace blip2rt {
namespace {

constexpr size_t kBatch = 8;  // texts that are embedded together, as in Python

void check_words(const std::string& text) {
  check_text(text);
  if (has_words(text)) return;
  throw Error(ErrorKind::kArgument, "a text has no words: say what the image may show, as in 'a dog on grass'");
}

}  // namespace

Match Model::match(Features& features, const std::string& text) {
  bundle_.require(kRetrieval, "match");
  require_own(features.model, "the features are");
  check_words(text);
  Signals signals = calibrator_->match_signals({text});
  measure(features, signals);
  return calibrator_->matches(signals).front();
}

void Model::require_calibration(bool has, const std::string& action) const {
  bundle_.require(kRetrieval, action);
  if (has) return;
  throw Error(ErrorKind::kModel, "bundle '" + bundle_.manifest.name + "' cannot " + action +
                                     ": its manifest has no calibration of this that this blip2rt knows; "
                                     "blip2rt-train calibrate adds it");
}

double Model::sees(Features& features, const std::string& statement) {
  require_calibration(judges(), "judge what it sees");
  require_own(features.model, "the features are");
  check_words(statement);
  return probabilities(features, {phrase_of(statement).value_or(statement)}).front();
}

// The calibrated probability that each text is true.
std::vector<double> Model::probabilities(Features& features, std::vector<std::string> texts) {
  Signals signals = calibrator_->statement_signals(std::move(texts));
  measure(features, signals);
  return calibrator_->probabilities(signals);
}

double Model::confidence(Features& features, const Text& caption) {
  require_calibration(calibrator_ && calibrator_->rates_captions(), "tell how likely a caption is right");
  require_own(features.model, "the features are");
  check_words(caption.text);
  Signals signals = calibrator_->caption_signals({caption.text}, {caption.score});
  measure(features, signals);
  return calibrator_->confidence(signals).front();
}

// Runs what signals of texts about one image need.
void Model::measure(Features& features, Signals& signals) {
  for (size_t number = 0; number < signals.runs().size(); ++number) {
    const std::vector<double> values = output(features, signals.runs()[number]);
    signals.add(number, values.data(), values.size() / signals.runs()[number].size());
  }
}

std::vector<double> Model::output(Features& features, const Run& run) {
  std::vector<double> values;
  const auto append = [&values](const std::vector<float>& more) {
    values.insert(values.end(), more.begin(), more.end());
  };
  switch (run.output) {
    case Output::kNone: break;
    case Output::kImageEmbeds: {
      const Tensor embeds = embed_image(features);
      for (size_t pair = 0; pair < run.size(); ++pair) append(embeds.values);
      break;
    }
    case Output::kTextEmbeds: append(embed_texts(run.texts).values); break;
    case Output::kItmLogits:
      for (const std::string& text : run.texts) append(itm_logits(features, text).values);
      break;
    case Output::kLikelihoods: {
      const auto [given, without] = likelihoods(features, run.texts);
      for (size_t i = 0; i < given.size(); ++i) values.push_back(given[i] - without[i]);
      break;
    }
    case Output::kYesOdds: {
      const auto [given, without] = yes_odds(features, run.texts);
      for (size_t i = 0; i < given.size(); ++i) values.insert(values.end(), {given[i], without[i]});
      break;
    }
  }
  return values;
}

// The answer to a short question; its score is its log-probability.
std::optional<Text> Model::short_answer(Features& features, const std::string& question,
                                        const GenerationOptions& options) {
  const std::optional<ShortQuestion> asked =
      calibrator_ ? calibrator_->short_question(question, options) : std::nullopt;
  if (!asked) return std::nullopt;
  const auto measure = [&](Signals& signals, const std::vector<size_t>&) { this->measure(features, signals); };
  const auto score = [&](size_t, const std::string& text, const std::vector<std::string>& answers) {
    return answer_scores(features, text, answers);
  };
  const ShortAnswer answer = short_answers(*calibrator_, {*asked}, measure, score).front();
  return Text{answer.text, answer.log_probability, language().tokenizer().encode_more({"", " " + answer.text, ""}),
              false};
}

// How likely each answer is.
std::vector<double> Model::answer_scores(Features& features, const std::string& question,
                                         const std::vector<std::string>& answers) {
  const Tensor prefix = prefix_embeds(features, language().qformer_question(question));
  if (!bundle_.manifest.retrieval || !bundle_.manifest.retrieval->mean_prefix) {
    return language().answer_likelihoods({&prefix}, question, answers);
  }
  const Tensor mean = mean_prefix();
  const std::vector<double> both = language().answer_likelihoods({&prefix, &mean}, question, answers);
  const auto half = both.begin() + static_cast<ptrdiff_t>(answers.size());
  return blip2rt::answer_scores({both.begin(), half}, {half, both.end()});
}

size_t Model::choose(Features& features, const std::string& question, const std::vector<std::string>& choices) {
  bundle_.require(kGenerative, "choose");
  require_own(features.model, "the features are");
  for (const std::string& choice : choices) check_words(choice);
  if (choices.empty()) throw Error(ErrorKind::kArgument, "there are no choices: give one or more");
  const std::vector<double> scores = answer_scores(features, question, choices);
  if (!judges()) return best_choice(question, choices, scores, {});
  return best_choice(question, choices, scores, probabilities(features, choices));
}

Texts Model::tag(Features& features, const std::shared_ptr<const Labels>& labels, size_t top, double threshold) {
  require_calibration(calibrator_ && calibrator_->rates_labels(), "label images");
  require_own(features.model, "the features are");
  const Tagger tagger(labels, *bundle_.manifest.calibration, top, threshold);
  const std::shared_ptr<const Tensor> embeds = label_embeds(labels);
  const Tensor image = embed_image(features);
  const auto width = static_cast<size_t>(embeds->shape.back());
  const std::string caption =
      tagger.reads_captions() ? this->caption(features, nullptr, CallerOptions(), nullptr).front().text : "";
  Texts tags;
  for (const Tag& tag : tagger.tags(
           tagger.nearness(image.values.data(), image.values.size() / width, embeds->values.data(), width), caption)) {
    const Label& label = labels->all()[tag.label];
    std::vector<std::string> parts = label.parents;
    parts.push_back(label.name);
    tags.push_back({joined(parts, "|"), tag.probability, {}, false});
  }
  return tags;
}

// Those of the last list are kept.
std::shared_ptr<const Tensor> Model::label_embeds(const std::shared_ptr<const Labels>& labels) {
  std::vector<std::string> texts = embedded_texts(*labels);
  {
    const std::lock_guard lock(mutex_);
    if (texts == embedded_labels_) return label_embeds_;
  }
  const auto embeds = std::make_shared<const Tensor>(embed_texts(texts));
  const std::lock_guard lock(mutex_);
  embedded_labels_ = std::move(texts);
  return label_embeds_ = embeds;
}

Tensor Model::embed_texts(const std::vector<std::string>& texts) {
  Tensor all{{static_cast<int64_t>(texts.size()), 0}, {}};
  for (size_t start = 0; start < texts.size(); start += kBatch) {
    const size_t count = std::min(kBatch, texts.size() - start);
    std::vector<Ids> rows;
    size_t longest = 0;
    for (size_t i = 0; i < count; ++i) {
      rows.push_back(text_tokenizer().encode(texts[start + i]));
      longest = std::max(longest, rows.back().size());
    }
    Ids ids, mask;
    for (const Ids& row : rows) {
      ids.insert(ids.end(), row.begin(), row.end());
      ids.insert(ids.end(), longest - row.size(), bundle_.manifest.retrieval->pad_token_id);
      mask.insert(mask.end(), row.size(), 1);
      mask.insert(mask.end(), longest - row.size(), 0);
    }
    std::vector<Feed> feeds;
    feeds.emplace_back("token_ids", ids, count);
    feeds.emplace_back("text_mask", mask, count);
    const Tensor embeds = graphs_.run("text_embed", "text_embeds", feeds);
    all.values.insert(all.values.end(), embeds.values.begin(), embeds.values.end());
    all.shape[1] = embeds.shape.back();
  }
  return all;
}

Tensor Model::itm_logits(const Features& features, const std::string& text) {
  const Ids ids = text_tokenizer().encode(text), mask(ids.size(), 1);
  std::vector<Feed> feeds;
  feeds.emplace_back("vision_features", features.vision);
  feeds.emplace_back("token_ids", ids);
  feeds.emplace_back("text_mask", mask);
  return graphs_.run("itm", "itm_logits", feeds);
}

// The mean prefix_embeds of photographs, in place of no image: (1, Q, D).
Tensor Model::mean_prefix() const {
  const LlmSpec& llm = *bundle_.manifest.llm;
  Tensor mean{{1, llm.prefix_length, llm.hidden_size}, {}};
  mean.values.resize(static_cast<size_t>(llm.prefix_length * llm.hidden_size));
  const std::string bytes = read_regular(bundle_.file(*bundle_.manifest.retrieval->mean_prefix), UINT32_MAX);
  std::memcpy(mean.values.data(), bytes.data(), std::min(bytes.size(), 4 * mean.values.size()));
  return mean;
}

// log p(text) with the image and without.
Model::Compared Model::likelihoods(Features& features, const std::vector<std::string>& texts) {
  require_likelihood("tell how likely a text is");
  std::vector<std::string> written;
  for (const std::string& text : texts) written.push_back(text_tokenizer().written(text));
  const auto [prompt, ids] =
      language().caption_tokens(written, language().spec().prefix_length, bundle_.manifest.retrieval->max_text_length);
  return compared(features, gain_.texts(1, std::vector<size_t>(texts.size()), prompt, ids));
}

// log p(yes) - log p(no) with the image and without.
Model::Compared Model::yes_odds(Features& features, const std::vector<std::string>& questions) {
  require_likelihood("weigh yes against no");
  const LlmTokenizer& tokenizer = language().tokenizer();
  std::vector<Ids> asked;
  for (const std::string& question : questions) asked.push_back(tokenizer.encode(language().ask_prompt(question)));
  const std::vector<Ids> answers = {tokenizer.encode_more({"", " yes", ""}), tokenizer.encode_more({"", " no", ""})};
  return compared(features, gain_.questions(1, std::vector<size_t>(questions.size()), asked, answers,
                                            !bundle_.manifest.llm->encoder_decoder));
}

Model::Compared Model::compared(Features& features, const GainRun& run) {
  const Tensor prefix = prefix_embeds(features, language().caption_prompt(nullptr).whole()), mean = mean_prefix();
  std::vector<const Tensor*> prefixes;
  for (const size_t image : run.prefixes) prefixes.push_back(image == 0 ? &prefix : &mean);
  return gain_.finish(run, language().likelihoods(prefixes, run.prompts, run.images, run.texts));
}

void Model::require_likelihood(const std::string& action) const {
  std::vector<std::string> needed = kRetrieval;
  needed.insert(needed.end(), kGenerative.begin(), kGenerative.end());
  bundle_.require(needed, action);
  if (bundle_.manifest.retrieval->mean_prefix) return;
  throw Error(ErrorKind::kModel, "bundle '" + bundle_.manifest.name + "' cannot " + action +
                                     ": it lacks retrieval.mean_prefix; blip2rt-train calibrate adds it");
}

}  // namespace blip2rt
