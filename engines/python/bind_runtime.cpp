// Matches, probabilities, labels and pools of captions: numbers of the graphs, which Python runs, in and out.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "python/bind.h"
#include "python/casters.h"
#include "python/errors.h"
#include "python/gil.h"
#include "python/python_types.h"
#include "runtime/calibrator.h"
#include "runtime/caption_pool.h"
#include "runtime/image_gain.h"
#include "runtime/short_answers.h"
#include "runtime/tagger.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace blip2rt {
namespace {

using Floats = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Doubles = nb::ndarray<const double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Texts = std::vector<CallerText>;

std::optional<Logistic> logistic_of(nb::handle regression) {
  if (regression.is_none()) return std::nullopt;
  return Logistic{nb::cast<double>(regression.attr("bias")),
                  nb::cast<std::map<std::string, double>>(regression.attr("weights"))};
}

// Reads blip2rt.bundle.manifest.Calibration.
std::optional<Calibration> calibration_of(nb::handle given) {
  if (given.is_none()) return std::nullopt;
  const auto numbers = [&](const char* name) { return nb::cast<std::vector<double>>(given.attr(name)); };
  Calibration read;
  for (const auto& [name, into] : {std::pair("phrase", &read.phrase), std::pair("sentence", &read.sentence),
                                   std::pair("label", &read.label), std::pair("caption", &read.caption),
                                   std::pair("nearness", &read.nearness), std::pair("statement", &read.statement)}) {
    *into = logistic_of(given.attr(name));
  }
  read.label_text = numbers("label_text");
  read.mean_text = numbers("mean_text");
  read.numbers = nb::cast<std::vector<std::string>>(given.attr("numbers"));
  return read;
}

// Reads blip2rt.bundle.manifest.RetrievalSpec.
RetrievalSpec weights_of(nb::handle spec) {
  RetrievalSpec read{};
  read.temperature = nb::cast<double>(spec.attr("temperature"));
  read.itm_weight = nb::cast<double>(spec.attr("itm_weight"));
  read.likelihood_weight = nb::cast<double>(spec.attr("likelihood_weight"));
  return read;
}

const char* name_of(Output output) {
  constexpr const char* names[] = {"", "image_embeds", "text_embeds", "itm_logits", "likelihoods", "yes_odds"};
  return names[static_cast<size_t>(output)];
}

using RunTuple = std::tuple<std::string, std::vector<size_t>, std::vector<std::string>>;

std::vector<RunTuple> runs_of(const Signals& signals) {
  std::vector<RunTuple> runs;
  for (const Run& run : signals.runs()) runs.emplace_back(name_of(run.output), run.pairs, run.texts);
  return runs;
}

void add_output(Signals& signals, size_t run, const Doubles& values) {
  if (run >= signals.runs().size() || values.shape(0) != signals.runs()[run].size()) {
    throw std::runtime_error("values must have a row for each of the run's pairs or texts");
  }
  signals.add(run, values.data(), values.shape(1));
}

std::vector<double> values_of(const Signals& signals, const std::string& name) {
  std::vector<double> values;
  for (size_t pair = 0; pair < signals.texts().size(); ++pair) values.push_back(signals.at(name, pair));
  return values;
}

using MatchTuple = std::tuple<double, double, double, std::optional<double>, double>;

std::vector<MatchTuple> matches_of(const Calibrator& self, const Signals& signals) {
  std::vector<MatchTuple> all;
  for (const Match& match : self.matches(signals)) {
    all.emplace_back(match.probability, match.cosine, match.score, match.likelihood, match.itm);
  }
  return all;
}

// nanobind's own holder of shared pointers aborts when out of memory.
struct PythonLabels {
  std::shared_ptr<const Labels> held;
};

using LabelTuple = std::tuple<std::string, std::vector<std::string>, std::vector<std::string>>;

std::vector<LabelTuple> entries_of(const PythonLabels& self) {
  std::vector<LabelTuple> entries;
  for (const Label& label : self.held->all()) entries.emplace_back(label.name, label.parents, label.synonyms);
  return entries;
}

std::vector<double> nearness_of(const Tagger& self, const Floats& image_embeds, const Floats& label_embeds) {
  if (label_embeds.shape(0) != self.labels().all().size() || label_embeds.shape(1) != image_embeds.shape(1)) {
    throw std::runtime_error("label_embeds must have a row for each label, as wide as image_embeds");
  }
  const ReleasedGil released;
  return self.nearness(image_embeds.data(), image_embeds.shape(0), label_embeds.data(), label_embeds.shape(1));
}

std::vector<std::pair<size_t, double>> tags_of(const Tagger& self, const Floats& image_embeds,
                                               const Floats& label_embeds, const std::string& caption) {
  std::vector<std::pair<size_t, double>> all;
  for (const Tag& tag : self.tags(nearness_of(self, image_embeds, label_embeds), caption)) {
    all.emplace_back(tag.label, tag.probability);
  }
  return all;
}

// `measure` and `score` are Python functions.
std::vector<std::pair<std::string, double>> answers_of(const Calibrator& self, const std::vector<ShortQuestion>& asked,
                                                       const nb::callable& measure, const nb::callable& score) {
  const auto run = [&](Signals& signals, const std::vector<size_t>& images) { measure(&signals, images); };
  const auto scores = [&](size_t image, const std::string& question, const std::vector<std::string>& answers) {
    return nb::cast<std::vector<double>>(score(image, question, answers));
  };
  std::vector<std::pair<std::string, double>> all;
  for (ShortAnswer& answer : short_answers(self, asked, run, scores)) {
    all.emplace_back(std::move(answer.text), answer.log_probability);
  }
  return all;
}

void bind_signals(nb::module_& m) {
  nb::class_<Signals>(m, "Signals")
      .def(
          "__init__",
          [](Signals* self, const Texts& texts, const std::vector<std::string>& names,
             const std::vector<double>& mean_text) {
            new (self) Signals(utf8_of(texts), std::vector(texts.size(), names), mean_text);
          },
          "texts"_a, "names"_a, "mean_text"_a,
          "names: of the signals of each text. mean_text (E): what base_cosine compares images with.")
      .def_prop_ro("runs", &runs_of,
                   "What the caller computes: the output, the pairs whose images it reads, and the texts. image_embeds "
                   "(Q * E) of pairs, text_embeds (E) of texts; itm_logits (2), likelihoods (1) and yes_odds (2: with "
                   "the image and without) of pairs and a text for each.")
      .def("add", &add_output, "run"_a, "values"_a.noconvert(),
           "Add the output of a run: a row for each of its pairs or texts.")
      .def("values", &values_of, "name"_a);
  nb::class_<Calibrator>(m, "Calibrator")
      .def(
          "__init__",
          [](Calibrator* self, nb::handle retrieval, nb::handle calibration) {
            new (self) Calibrator(weights_of(retrieval), calibration_of(calibration));
          },
          "retrieval"_a, "calibration"_a.none())
      .def_prop_ro("rates_statements", &Calibrator::rates_statements)
      .def_prop_ro("rates_captions", &Calibrator::rates_captions)
      .def_prop_ro("rates_labels", &Calibrator::rates_labels)
      .def(
          "short_question",
          [](const Calibrator& self, const CallerText& question, const GenerationOptions& options) {
            return self.short_question(question.utf8, options);
          },
          "question"_a, "options"_a,
          "Read a question; None if its answer must be generated, or if options shape the words of the answer.")
      .def(
          "match_signals",
          [](const Calibrator& self, const Texts& texts) { return self.match_signals(utf8_of(texts)); }, "texts"_a)
      .def(
          "statement_signals",
          [](const Calibrator& self, const Texts& texts) { return self.statement_signals(utf8_of(texts)); }, "texts"_a)
      .def(
          "caption_signals",
          [](const Calibrator& self, const Texts& texts, const std::vector<double>& scores) {
            return self.caption_signals(utf8_of(texts), scores);
          },
          "texts"_a, "scores"_a)
      .def("matches", &matches_of, "signals"_a,
           "The fields of blip2rt.Match for each text of match_signals, whose runs were added.")
      .def("probabilities", &Calibrator::probabilities, "signals"_a)
      .def("confidence", &Calibrator::confidence, "signals"_a)
      .def("short_answers", &answers_of, "asked"_a, "measure"_a, "score"_a,
           "A question about each image -> the answer to each and its log-probability. measure: runs what signals of "
           "texts need, of which each has the number of its image. score: the number of an image, a question and "
           "answers -> their answer_scores.");
}

void bind_answers(nb::module_& m) {
  m.def("answer_scores", &answer_scores, "given"_a, "without"_a,
        "log p(answer | image, question), log p(answer | question) or nothing -> how likely each answer is");
  m.def(
      "best_choice",
      [](const CallerText& question, const Texts& choices, const std::vector<double>& scores,
         const std::vector<double>& probabilities) {
        return best_choice(question.utf8, utf8_of(choices), scores, probabilities);
      },
      "question"_a, "choices"_a, "scores"_a, "probabilities"_a);
  nb::class_<GainRun>(m, "GainRun")
      .def_ro("prefixes", &GainRun::prefixes,
              "The image of each prompt; the number behind the last image is the mean_prefix.")
      .def_ro("prompts", &GainRun::prompts)
      .def_ro("images", &GainRun::images)
      .def_ro("texts", &GainRun::texts);
  nb::class_<ImageGain>(m, "ImageGain")
      .def(nb::init<size_t>(), "capacity"_a = 8192)
      .def("__len__", &ImageGain::size)
      .def("texts", &ImageGain::texts, "count"_a, "images"_a, "prompt"_a, "texts"_a,
           "B texts behind one prompt, and the image of each, of `count` images -> what must be read")
      .def("questions", &ImageGain::questions, "count"_a, "images"_a, "asked"_a, "answers"_a, "shares"_a,
           "The same for the odds of two answers to B questions. shares: what all questions begin with is read once "
           "for each image; not in an encoder-decoder.")
      .def("finish", &ImageGain::finish, "run"_a, "logs"_a,
           "The log-probabilities of a run's texts -> values with the image and without (B)");
}

void bind_labels(nb::module_& m) {
  nb::class_<PythonLabels>(m, "Labels")
      .def(
          "__init__",
          [](PythonLabels* self, const Texts& texts) {
            new (self) PythonLabels{std::make_shared<const Labels>(utf8_of(texts))};
          },
          "texts"_a)
      .def_static("everyday", [] { return PythonLabels{Labels::everyday()}; })
      .def("__len__", [](const PythonLabels& self) { return self.held->all().size(); })
      .def_prop_ro("entries", &entries_of, "Name, parents from the most general on, and synonyms of each label.")
      .def_prop_ro("embedded", [](const PythonLabels& self) { return embedded_texts(*self.held); })
      .def(
          "named_in",
          [](const PythonLabels& self, const std::vector<std::string>& captions) {
            const std::vector<bool> named = self.held->named_in(captions);
            return std::vector<int>(named.begin(), named.end());
          },
          "captions"_a, "1 for each label that captions of a picture name, by any of its words or plurals, else 0.");
  nb::class_<Tagger>(m, "Tagger")
      .def(
          "__init__",
          [](Tagger* self, const PythonLabels& labels, nb::handle calibration, size_t top, double threshold) {
            new (self) Tagger(labels.held, calibration_of(calibration).value(), top, threshold);
          },
          "labels"_a, "calibration"_a, "top"_a, "threshold"_a)
      .def_prop_ro("reads_captions", &Tagger::reads_captions)
      .def("nearness", &nearness_of, "image_embeds"_a.noconvert(), "label_embeds"_a.noconvert(),
           "image_embeds (Q, E), label_embeds (L, E) -> how near each label is: its largest cosine unless calibrated")
      .def("tags", &tags_of, "image_embeds"_a.noconvert(), "label_embeds"_a.noconvert(), "caption"_a,
           "The numbers of the labels that a picture shows, with their probabilities, the likeliest first.");
}

struct PythonPool {
  std::shared_ptr<const CaptionPool> shared;
};

void bind_pool(nb::module_& m) {
  nb::class_<PythonPool>(m, "CaptionPool")
      .def(
          "__init__", [](PythonPool* self, const std::string& path) { new (self) PythonPool{CaptionPool::open(path)}; },
          WithoutGil(), "path"_a)
      .def_static(
          "of_bytes",
          [](const nb::bytes& data) { return PythonPool{CaptionPool::of_bytes({data.c_str(), data.size()})}; },
          "data"_a)
      .def_static(
          "pack",
          [](const std::string& fingerprint, const Floats& projection, const Floats& codes,
             const std::vector<TokenText>& texts, size_t vocab_size) {
            const auto values = [](const Floats& array) {
              return std::vector<float>(array.data(), array.data() + array.size());
            };
            const std::string file = CaptionPool::pack(
                {fingerprint, projection.shape(0), vocab_size, values(projection), values(codes), texts});
            return nb::bytes(file.data(), file.size());
          },
          "fingerprint"_a, "projection"_a.noconvert(), "codes"_a.noconvert(), "texts"_a, "vocab_size"_a,
          "projection (E, D), and the codes (N, D) and token ids of N captions -> a file's contents")
      .def_static(
          "with_fingerprint",
          [](const nb::bytes& data, const std::string& fingerprint) {
            const std::string file = CaptionPool::with_fingerprint({data.c_str(), data.size()}, fingerprint);
            return nb::bytes(file.data(), file.size());
          },
          "data"_a, "fingerprint"_a, "A file's contents for another model with equal embeddings and tokens")
      .def_static(
          "is_pool",
          [](const nb::bytes& beginning) { return CaptionPool::is_pool({beginning.c_str(), beginning.size()}); },
          "beginning"_a)
      .def_prop_ro("fingerprint", [](const PythonPool& self) { return std::string(self.shared->fingerprint()); })
      .def("__len__", [](const PythonPool& self) { return self.shared->size(); })
      .def(
          "nearest",
          [](const PythonPool& self, const Floats& image_embeds) {
            return self.shared->nearest(image_embeds.data(), image_embeds.shape(0), image_embeds.shape(1));
          },
          "image_embeds"_a.noconvert(),
          "image_embeds (Q, E) -> the token ids of the captions nearest to the image, best first")
      .def(
          "guide",
          [](const PythonPool& self, const Floats& image_embeds, int64_t end) {
            return PythonGuide{
                self.shared->guide(image_embeds.data(), image_embeds.shape(0), image_embeds.shape(1), end)};
          },
          WithoutGil(), "image_embeds"_a.noconvert(), "end"_a,
          "image_embeds (Q, E) and the token that ends captions -> the guide of the image's caption")
      .def(
          "answer_guide",
          [](const PythonPool& self, const Floats& image_embeds, const std::string& question, const TokenText& asked,
             const PythonVocabulary* vocabulary) {
            return PythonGuide{self.shared->answer_guide(image_embeds.data(), image_embeds.shape(0),
                                                         image_embeds.shape(1), question, asked,
                                                         vocabulary == nullptr ? nullptr : vocabulary->shared.get())};
          },
          WithoutGil(), "image_embeds"_a.noconvert(), "question"_a, "asked"_a, "vocabulary"_a.none(),
          "image_embeds (Q, E), a question and its tokens -> the guide of its answer vocabulary: None unless the "
          "question asks for a plural.");
}

}  // namespace

void bind_runtime(nb::module_& m) {
  bind_signals(m);
  bind_answers(m);
  bind_labels(m);
  bind_pool(m);
}

}  // namespace blip2rt
