// The judge of images and texts, whose graphs a backend in Python opens; labels and pools of captions.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <new>
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
#include "python/python_graph.h"
#include "python/python_loop.h"
#include "python/python_types.h"
#include "runtime/judge.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace blip2rt {
namespace {

using Floats = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Vision = nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;  // vision_features (B, N, C)
using CallerTexts = std::vector<CallerText>;

struct PythonPool {
  std::shared_ptr<const CaptionPool> shared;
};

// nanobind's own holder of shared pointers aborts when out of memory.
struct PythonLabels {
  std::shared_ptr<const Labels> held;
};

// The graphs of a blip2rt.backends.Backend.
class PythonGraphs final : public Graphs {
 public:
  explicit PythonGraphs(nb::object backend) : backend_(std::move(backend)) {}

  std::shared_ptr<const Session> session(const std::string& component) override {
    const HeldGil held;
    return owned<Session>("session", nb::make_tuple(component));
  }

  std::shared_ptr<const Generator> generator() override {
    const HeldGil held;
    return owned<Generator>("generator", nb::make_tuple());
  }

  void check_signals() override {
    thread_local SignalCheck check;
    check();
  }

  Tensor run(const std::string& component, const char* output, const std::vector<Feed>& feeds) override {
    try {
      return Graphs::run(component, output, feeds);
    } catch (const std::bad_alloc&) {
      throw Error(ErrorKind::kBackend, session(component)->path() + " failed: out of memory");
    }
  }

 private:
  template <class T>
  std::shared_ptr<const T> owned(const char* method, const nb::tuple& arguments) const {
    nb::object made = call_python(backend_.attr(method), arguments);
    const auto* object = nb::cast<const T*>(made);
    return {shared_object(std::move(made)), object};
  }

  nb::object backend_;
};

struct PythonJudge {
  PythonJudge(nb::handle bundle, nb::object backend, nb::callable language, bool special_tokens, size_t kept_values)
      : graphs(std::move(backend)),
        language(std::move(language)),
        judge(
            bundle_of(bundle), graphs, [this]() -> const Language& { return opened_language(); }, special_tokens,
            kept_values) {}

  const Language& opened_language() const {
    const HeldGil held;
    return *nb::cast<const Language*>(call_python(language, nb::make_tuple()));
  }

  PythonGraphs graphs;
  nb::callable language;  // returns a Language that its owner keeps
  Judge judge;
};

// vision_features (B, N, C) without equal neighbours, and the image of each row.
struct VisionRows {
  explicit VisionRows(const Vision& given, bool distinct = true) {
    const size_t size = given.shape(1) * given.shape(2), rows = given.shape(0);
    std::vector<size_t> first;  // rows that differ from the one before
    for (size_t row = 0; row < rows; ++row) {
      const float* from = given.data() + row * size;
      if (row == 0 || !distinct || std::memcmp(from, from - size, size * sizeof(float)) != 0) first.push_back(row);
      images.push_back(first.size() - 1);
    }
    void* values = const_cast<float*>(given.data());
    if (first.size() != rows) {
      const auto copy = std::make_shared<std::vector<float>>();
      copy->reserve(first.size() * size);
      for (const size_t row : first) {
        copy->insert(copy->end(), given.data() + row * size, given.data() + (row + 1) * size);
      }
      values = copy->data();
      features.memory = copy;
    }
    features.vision = {values, {static_cast<int64_t>(first.size()), axis(given, 1), axis(given, 2)}};
  }

  // Throws unless there is a text for each row.
  void check(size_t texts) const {
    if (texts == images.size()) return;
    throw std::invalid_argument("there are " + std::to_string(images.size()) + " images and " + std::to_string(texts) +
                                " texts: give one for each");
  }

  Features features;
  Judge::Images images;

 private:
  static int64_t axis(const Vision& given, size_t at) { return static_cast<int64_t>(given.shape(at)); }
};

// Runs a call without the GIL.
template <class Work>
auto judged(Work work) {
  const ReleasedGil released;
  try {
    return work();
  } catch (const std::bad_alloc&) {
    throw Error(ErrorKind::kBackend, "generation failed: out of memory: ask for fewer tokens, beams or images");
  }
}

nb::ndarray<nb::numpy, float> array_of(Tensor tensor) {
  auto kept = std::make_unique<Tensor>(std::move(tensor));
  const std::vector<size_t> shape(kept->shape.begin(), kept->shape.end());
  float* values = kept->values.data();
  const nb::capsule owner(kept.release(), [](void* data) noexcept { delete static_cast<Tensor*>(data); });
  return {values, shape.size(), shape.data(), owner};
}

std::vector<PythonGuide> python_guides(Judge::Guides guides) {
  std::vector<PythonGuide> all;
  for (auto& guide : guides) all.push_back({std::move(guide)});
  return all;
}

using MatchTuple = std::tuple<double, double, double, std::optional<double>, double>;

std::vector<MatchTuple> match(PythonJudge& self, const Vision& vision, const CallerTexts& texts) {
  VisionRows rows(vision);
  rows.check(texts.size());
  const std::vector<Match> matches =
      judged([&] { return self.judge.match(rows.features, rows.images, utf8_of(texts)); });
  std::vector<MatchTuple> all;
  for (const Match& match : matches) {
    all.emplace_back(match.probability, match.cosine, match.score, match.likelihood, match.itm);
  }
  return all;
}

std::vector<double> probabilities(PythonJudge& self, const Vision& vision, const CallerTexts& statements) {
  VisionRows rows(vision);
  rows.check(statements.size());
  return judged([&] { return self.judge.probabilities(rows.features, rows.images, utf8_of(statements)); });
}

std::vector<std::optional<double>> confidence(PythonJudge& self, const Vision& vision, const CallerTexts& texts,
                                              const std::vector<double>& scores) {
  VisionRows rows(vision);
  rows.check(texts.size());
  Texts captions;
  for (size_t i = 0; i < texts.size(); ++i) captions.push_back({texts[i].utf8, scores.at(i), {}, false});
  std::vector<std::optional<double>> found;
  for (const double each : judged([&] { return self.judge.confidence(rows.features, rows.images, captions); })) {
    found.push_back(std::isnan(each) ? std::nullopt : std::optional(each));
  }
  return found;
}

nb::typed<nb::dict, std::string, std::vector<double>> signals(PythonJudge& self, const Vision& vision,
                                                              const CallerTexts& texts,
                                                              const std::vector<std::string>& names,
                                                              const std::vector<double>& mean_text) {
  VisionRows rows(vision);
  rows.check(texts.size());
  const Signals signals =
      judged([&] { return self.judge.signals(rows.features, rows.images, utf8_of(texts), names, mean_text); });
  nb::typed<nb::dict, std::string, std::vector<double>> values;
  for (const std::string& name : names) {
    std::vector<double> of_pairs;
    for (size_t pair = 0; pair < texts.size(); ++pair) of_pairs.push_back(signals.at(name, pair));
    values[name.c_str()] = of_pairs;
  }
  return values;
}

using TextTuple = std::tuple<std::string, double, Ids, bool>;

std::vector<TextTuple> short_answers(PythonJudge& self, const Vision& vision, const std::vector<ShortQuestion>& asked) {
  VisionRows rows(vision);
  rows.check(asked.size());
  std::vector<TextTuple> all;
  for (Text& text : judged([&] { return self.judge.short_answers(rows.features, rows.images, asked); })) {
    all.emplace_back(std::move(text.text), text.score, std::move(text.tokens), text.truncated);
  }
  return all;
}

std::vector<double> answer_scores(PythonJudge& self, const Vision& vision, const CallerText& question,
                                  const CallerTexts& answers) {
  VisionRows rows(vision);
  return judged([&] { return self.judge.answer_scores(rows.features, 0, question.utf8, utf8_of(answers)); });
}

size_t choose(PythonJudge& self, const Vision& vision, const CallerText& question, const CallerTexts& choices) {
  VisionRows rows(vision);
  return judged([&] { return self.judge.choose(rows.features, 0, question.utf8, utf8_of(choices)); });
}

using TagPair = std::pair<size_t, double>;

std::vector<std::vector<TagPair>> tags(PythonJudge& self, const Tagger& tagger, const Vision& vision,
                                       const CallerTexts& captions) {
  VisionRows rows(vision, false);
  std::vector<std::vector<TagPair>> all;
  for (const auto& tags : judged([&] { return self.judge.tags(tagger, rows.features, utf8_of(captions)); })) {
    auto& pairs = all.emplace_back();
    for (const Tag& tag : tags) pairs.emplace_back(tag.label, tag.probability);
  }
  return all;
}

std::vector<PythonGuide> answer_guides(PythonJudge& self, const Vision& vision, const CallerTexts& questions) {
  VisionRows rows(vision);
  rows.check(questions.size());
  return python_guides(
      judged([&] { return self.judge.answer_guides(rows.features, rows.images, utf8_of(questions)); }));
}

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

// A method of graphs that reads vision_features and texts, pairwise.
template <class Work>
auto pairwise(Work work) {
  return [work](PythonJudge& self, const Vision& vision, const CallerTexts& texts) {
    VisionRows rows(vision);
    rows.check(texts.size());
    return work(self.judge, rows, utf8_of(texts));
  };
}

void bind_outputs(nb::class_<PythonJudge>& bound) {
  bound
      .def(
          "image_embeds",
          [](PythonJudge& self, const Vision& vision) {
            VisionRows rows(vision, false);
            return array_of(judged([&] { return Tensor(self.judge.image_embeds(rows.features)); }));
          },
          "vision_features"_a)
      .def(
          "text_embeds",
          [](PythonJudge& self, const CallerTexts& texts) {
            return array_of(judged([&] { return self.judge.text_embeds(utf8_of(texts)); }));
          },
          "texts"_a)
      .def(
          "label_embeds",
          [](PythonJudge& self, const PythonLabels& labels) {
            return array_of(judged([&] { return Tensor(*self.judge.label_embeds(*labels.held)); }));
          },
          "labels"_a)
      .def(
          "prefix_embeds",
          [](PythonJudge& self, const Vision& vision, const CallerTexts& questions) {
            VisionRows rows(vision, false);
            rows.check(questions.size());
            return array_of(judged([&] { return self.judge.prefix_embeds(rows.features, utf8_of(questions)); }));
          },
          "vision_features"_a, "questions"_a, "questions: what a Q-Former that reads text reads with each image.")
      .def(
          "caption_prefix",
          [](PythonJudge& self, const Vision& vision) {
            VisionRows rows(vision, false);
            return array_of(judged([&] { return self.judge.caption_prefix(rows.features); }));
          },
          "vision_features"_a)
      .def("itm_logits", pairwise([](Judge& judge, VisionRows& rows, const std::vector<std::string>& texts) {
             return array_of(judged([&] { return judge.itm_logits(rows.features, rows.images, texts); }));
           }),
           "vision_features"_a, "texts"_a)
      .def("likelihoods", pairwise([](Judge& judge, VisionRows& rows, const std::vector<std::string>& texts) {
             return judged([&] { return judge.likelihoods(rows.features, rows.images, texts); });
           }),
           "vision_features"_a, "texts"_a, "log p(text) with the image and without (B)")
      .def("yes_odds", pairwise([](Judge& judge, VisionRows& rows, const std::vector<std::string>& texts) {
             return judged([&] { return judge.yes_odds(rows.features, rows.images, texts); });
           }),
           "vision_features"_a, "questions"_a, "log p(yes) - log p(no) with the image and without (B)");
}

void bind_judge(nb::module_& m) {
  nb::class_<PythonJudge> bound(m, "Judge");
  bound
      .def(nb::init<nb::handle, nb::object, nb::callable, bool, size_t>(), "bundle"_a, "backend"_a, "language"_a,
           "special_tokens"_a = true, "kept_values"_a = 8192,
           "bundle: a blip2rt.bundle.Bundle. backend: opens its graphs. language: returns a Language, which its owner "
           "keeps. kept_values: most values without an image that are kept.")
      .def_prop_ro("rates_statements", [](const PythonJudge& self) { return self.judge.rates_statements(); })
      .def_prop_ro("rates_captions", [](const PythonJudge& self) { return self.judge.rates_captions(); })
      .def_prop_ro("kept_values", [](const PythonJudge& self) { return self.judge.kept_values(); })
      .def(
          "require_statements",
          [](const PythonJudge& self, const std::string& action) { self.judge.require_statements(action); }, "action"_a)
      .def("require_confidence", [](const PythonJudge& self) { self.judge.require_confidence(); })
      .def("match", &match, "vision_features"_a, "texts"_a, "The fields of blip2rt.Match for each text.")
      .def("probabilities", &probabilities, "vision_features"_a, "statements"_a)
      .def("confidence", &confidence, "vision_features"_a, "captions"_a, "scores"_a,
           "How likely each caption is right; None for one without words.")
      .def("signals", &signals, "vision_features"_a, "texts"_a, "names"_a, "mean_text"_a)
      .def(
          "short_question",
          [](const PythonJudge& self, const CallerText& question, const GenerationOptions& options) {
            return self.judge.short_question(question.utf8, options);
          },
          "question"_a, "options"_a,
          "Read a question; None if its answer must be generated, or if options shape the words of the answer.")
      .def("short_answers", &short_answers, "vision_features"_a, "asked"_a,
           "The fields of blip2rt.Scored for each question.")
      .def("answer_scores", &answer_scores, "vision_features"_a, "question"_a, "answers"_a,
           "How likely each answer is: log p(answer | image, question), less a part of what it is without the image.")
      .def("choose", &choose, "vision_features"_a, "question"_a, "choices"_a)
      .def(
          "tagger",
          [](const PythonJudge& self, const PythonLabels& labels, size_t top, double threshold) {
            return self.judge.tagger(labels.held, top, threshold);
          },
          "labels"_a, "top"_a, "threshold"_a)
      .def("tags", &tags, "tagger"_a, "vision_features"_a, "captions"_a,
           "The numbers of the labels that each image shows, with their probabilities, the likeliest first. captions: "
           "of the images, if the tagger reads them.")
      .def("answer_guides", &answer_guides, "vision_features"_a, "questions"_a)
      .def(
          "caption_guides",
          [](PythonJudge& self, const Vision& vision, const PythonPool* pool) {
            VisionRows rows(vision, false);
            return python_guides(judged([&] {
              const std::shared_ptr<const CaptionPool> shared = pool == nullptr ? self.judge.own_pool() : pool->shared;
              return self.judge.caption_guides(*shared, rows.features);
            }));
          },
          "vision_features"_a, "pool"_a = nb::none(), "pool: None for the bundle's own.");
  bind_outputs(bound);
  m.def(
      "best_choice",
      [](const CallerText& question, const CallerTexts& choices, const std::vector<double>& scores,
         const std::vector<double>& probabilities) {
        return best_choice(question.utf8, utf8_of(choices), scores, probabilities);
      },
      "question"_a, "choices"_a, "scores"_a, "probabilities"_a);
}

void bind_labels(nb::module_& m) {
  nb::class_<PythonLabels>(m, "Labels")
      .def(
          "__init__",
          [](PythonLabels* self, const CallerTexts& texts) {
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
           "image_embeds (Q, E), label_embeds (L, E) -> how near each label is: its largest cosine unless calibrated");
}

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
  bind_labels(m);
  bind_pool(m);
  bind_judge(m);
}

}  // namespace blip2rt
