#include "runtime/judge.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "english/answer_words.h"
#include "english/statements.h"
#include "english/text_forms.h"

namespace blip2rt {
namespace {

std::optional<Calibrator> calibrator_of(const Manifest& manifest) {
  if (!manifest.retrieval) return std::nullopt;
  return Calibrator(*manifest.retrieval, manifest.calibration);
}

}  // namespace

void check_words(const std::string& text) {
  check_text(text);
  if (has_words(text)) return;
  throw Error(ErrorKind::kArgument, "a text has no words: say what the image may show, as in 'a dog on grass'");
}

Judge::Judge(const Bundle& bundle, Graphs& graphs, std::function<const Language&()> language, bool special_tokens,
             size_t kept_values)
    : bundle_(bundle),
      graphs_(graphs),
      language_(std::move(language)),
      special_tokens_(special_tokens),
      calibrator_(calibrator_of(bundle_.manifest)),
      gain_(kept_values) {}

void Judge::require_calibration(bool has, const std::string& action) const {
  bundle_.require(kRetrieval, action);
  if (has) return;
  throw Error(ErrorKind::kCapability, "bundle '" + bundle_.manifest.name + "' cannot " + action +
                                          ": its manifest has no calibration of this that this blip2rt knows; "
                                          "blip2rt-train calibrate adds it");
}

std::vector<Match> Judge::match(Features& features, const Images& images, const Strings& texts) {
  bundle_.require(kRetrieval, "match");
  Signals signals = calibrator_->match_signals(texts);
  measure(signals, features, images);
  return calibrator_->matches(signals);
}

std::vector<double> Judge::probabilities(Features& features, const Images& images, Strings statements) {
  require_statements("judge statements");
  for (std::string& statement : statements) statement = phrase_of(statement).value_or(statement);
  Signals signals = calibrator_->statement_signals(std::move(statements));
  measure(signals, features, images);
  return calibrator_->probabilities(signals);
}

std::vector<double> Judge::confidence(Features& features, const Images& images, const Texts& captions) {
  require_confidence();
  Strings texts;
  std::vector<double> scores, found(captions.size(), std::numeric_limits<double>::quiet_NaN());
  Images rows, worded;
  for (size_t i = 0; i < captions.size(); ++i) {
    if (!has_words(captions[i].text)) continue;
    texts.push_back(captions[i].text);
    scores.push_back(captions[i].score);
    rows.push_back(images.at(i));
    worded.push_back(i);
  }
  Signals signals = calibrator_->caption_signals(std::move(texts), std::move(scores));
  measure(signals, features, rows);
  const std::vector<double> values = calibrator_->confidence(signals);
  for (size_t i = 0; i < worded.size(); ++i) found[worded[i]] = values[i];
  return found;
}

Signals Judge::signals(Features& features, const Images& images, const Strings& texts, const Strings& names,
                       std::vector<double> mean_text) {
  Signals signals(texts, std::vector(texts.size(), names), std::move(mean_text));
  measure(signals, features, images);
  return signals;
}

// Runs what signals need; text i is about image images[i].
void Judge::measure(Signals& signals, Features& features, const Images& images) {
  for (size_t number = 0; number < signals.runs().size(); ++number) {
    const Run& run = signals.runs()[number];
    Images read;
    for (const size_t pair : run.pairs) read.push_back(images.at(pair));
    const std::vector<double> values = output(features, read, run.texts, run.output);
    signals.add(number, values.data(), values.size() / run.size());
  }
}

std::vector<double> Judge::output(Features& features, const Images& images, const Strings& texts, Output output) {
  std::vector<double> values;
  const auto append = [&values](const Tensor& more) {
    values.insert(values.end(), more.values.begin(), more.values.end());
  };
  switch (output) {
    case Output::kNone: break;
    case Output::kImageEmbeds: {
      const Tensor& embeds = image_embeds(features);
      for (const size_t image : images) {
        values.insert(values.end(), embeds.row(image), embeds.row(image) + embeds.row_size());
      }
      break;
    }
    case Output::kTextEmbeds: append(text_embeds(texts)); break;
    case Output::kItmLogits: append(itm_logits(features, images, texts)); break;
    case Output::kLikelihoods: {
      const auto [given, without] = likelihoods(features, images, texts);
      for (size_t i = 0; i < given.size(); ++i) values.push_back(given[i] - without[i]);
      break;
    }
    case Output::kYesOdds: {
      const auto [given, without] = yes_odds(features, images, texts);
      for (size_t i = 0; i < given.size(); ++i) values.insert(values.end(), {given[i], without[i]});
      break;
    }
  }
  return values;
}

std::optional<ShortQuestion> Judge::short_question(const std::string& question,
                                                   const GenerationOptions& options) const {
  return calibrator_ ? calibrator_->short_question(question, options) : std::nullopt;
}

Texts Judge::short_answers(Features& features, const Images& images, const std::vector<ShortQuestion>& asked) {
  const auto measure = [&](Signals& signals, const Images& questions) {
    Images read;
    for (const size_t question : questions) read.push_back(images.at(question));
    this->measure(signals, features, read);
  };
  const auto score = [&](size_t question, const std::string& text, const Strings& answers) {
    return answer_scores(features, images.at(question), text, answers);
  };
  Texts texts;
  for (ShortAnswer& answer : blip2rt::short_answers(*calibrator_, asked, measure, score)) {
    Ids tokens = language_().tokenizer().encode_more({"", " " + answer.text, ""});
    texts.push_back({std::move(answer.text), answer.log_probability, std::move(tokens), false});
  }
  return texts;
}

std::vector<double> Judge::answer_scores(Features& features, size_t image, const std::string& question,
                                         const Strings& answers) {
  const Strings asked(static_cast<size_t>(features.vision.axes[0]), language_().qformer_question(question));
  const Tensor prefix = prefix_embeds(features, asked);
  const Tensor* mean = mean_prefix();
  const auto [prompts, tokens] = language_().answer_tokens({question}, answers);
  std::vector<const float*> prefixes = {prefix.row(image)};
  if (mean != nullptr) prefixes.push_back(mean->values.data());
  Images rows;
  std::vector<Ids> texts;
  for (size_t row = 0; row < prefixes.size(); ++row) {
    rows.insert(rows.end(), tokens.size(), row);
    texts.insert(texts.end(), tokens.begin(), tokens.end());
  }
  const std::vector<double> found =
      log_probabilities(prefixes, std::vector(prefixes.size(), prompts.front()), rows, texts);
  const auto half = found.begin() + static_cast<ptrdiff_t>(answers.size());
  return blip2rt::answer_scores({found.begin(), half}, {half, found.end()});
}

size_t Judge::choose(Features& features, size_t image, const std::string& question, const Strings& choices) {
  const std::vector<double> scores = answer_scores(features, image, question, choices);
  if (!rates_statements()) return best_choice(question, choices, scores, {});
  Strings texts;
  for (const std::string& choice : choices) {
    if (has_words(choice)) texts.push_back(choice);
  }
  const Images images(texts.size(), image);
  Signals signals = calibrator_->statement_signals(std::move(texts));
  measure(signals, features, images);
  std::vector<double> found = calibrator_->probabilities(signals);
  for (size_t i = 0; i < choices.size(); ++i) {
    if (!has_words(choices[i])) found.insert(found.begin() + static_cast<ptrdiff_t>(i), 0.0);
  }
  return best_choice(question, choices, scores, found);
}

Tagger Judge::tagger(const std::shared_ptr<const Labels>& labels, size_t top, double threshold) const {
  require_calibration(calibrator_ && calibrator_->rates_labels(), "label images");
  return {labels, *bundle_.manifest.calibration, std::min(top, labels->all().size()), threshold};
}

std::vector<std::vector<Tag>> Judge::tags(const Tagger& tagger, Features& features, const Strings& captions) {
  const std::shared_ptr<const Tensor> labels = label_embeds(tagger.labels());
  const Tensor& images = image_embeds(features);
  const auto width = static_cast<size_t>(labels->shape.back());
  std::vector<std::vector<Tag>> tags;
  for (size_t image = 0; image < images.rows(); ++image) {
    const std::vector<double> near =
        tagger.nearness(images.row(image), images.row_size() / width, labels->values.data(), width);
    tags.push_back(tagger.tags(near, tagger.reads_captions() ? captions.at(image) : ""));
  }
  return tags;
}

std::shared_ptr<const CaptionPool> Judge::own_pool() {
  const std::optional<RetrievalSpec>& retrieval = bundle_.manifest.retrieval;
  if (!retrieval || !retrieval->pool) return nullptr;
  return pool_.get([&] { return named_failure([&] { return CaptionPool::open(bundle_.file(*retrieval->pool)); }); });
}

Judge::Guides Judge::caption_guides(const CaptionPool& pool, Features& features) {
  const Tensor& embeds = image_embeds(features);
  const auto width = static_cast<size_t>(embeds.shape.back());
  const int64_t end = language_().spec().eos_token_ids.front();
  return named_failure([&] {
    Guides guides;
    for (size_t image = 0; image < embeds.rows(); ++image) {
      guides.push_back(pool.guide(embeds.row(image), embeds.row_size() / width, width, end));
    }
    return guides;
  });
}

Judge::Guides Judge::answer_guides(Features& features, const Images& images, const Strings& questions) {
  const std::shared_ptr<const CaptionPool> pool = own_pool();
  const Tensor& embeds = image_embeds(features);
  const auto width = static_cast<size_t>(embeds.shape.back());
  const LlmTokenizer& tokenizer = language_().tokenizer();
  return named_failure([&] {
    Guides guides;
    for (size_t i = 0; i < questions.size(); ++i) {
      const Ids ids = tokenizer.encode_more({"", " " + questions[i], ""});
      const auto vocabulary = asks_for_plural(questions[i]) ? tokenizer.vocabulary() : nullptr;
      guides.push_back(pool->answer_guide(embeds.row(images.at(i)), embeds.row_size() / width, width, questions[i],
                                          {ids.begin(), ids.end()}, vocabulary.get()));
    }
    return guides;
  });
}

}  // namespace blip2rt
