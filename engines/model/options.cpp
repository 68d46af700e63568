// Parses options, reports faults in the words of blip2rt.options, and applies the defaults.
#include "model/options.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <random>

#include "base/utf8.h"

namespace blip2rt {
namespace {

constexpr int64_t kMaxBeams = 100, kMaxTokens = 1 << 16, kMaxInt = INT32_MAX, kMaxSeed = INT64_MAX;
constexpr int kTopK = 50;  // default of sampling, as in Hugging Face

struct Whole {
  const char* name;
  int64_t low, high;
};

constexpr Whole kWhole[] = {{"num_captions", 1, kMaxBeams},
                            {"num_beams", 1, kMaxBeams},
                            {"max_new_tokens", 1, kMaxTokens},
                            {"min_new_tokens", 0, kMaxTokens},
                            {"no_repeat_ngram_size", 0, kMaxInt},
                            {"top_k", 0, kMaxInt},
                            {"seed", 0, kMaxSeed}};

struct Number {
  const char *name, *requirement;
  bool (*holds)(double);
};

bool is_positive(double x) { return x >= 1e-37 && x <= 1e38; }
bool is_share(double x) { return x >= 0 && x <= 1; }

constexpr const char* kPositive = "a number above 0, from 1e-37 to 1e+38";
constexpr Number kNumbers[] = {
    {"length_penalty", "a number from -1e+38 to 1e+38", [](double x) { return std::fabs(x) <= 1e38; }},
    {"repetition_penalty", kPositive, is_positive},
    {"temperature", kPositive, is_positive},
    {"top_p", "a number from 0 to 1", is_share},
    {"min_p", "a number from 0 to 1", is_share},
    {"max_time", "a number of seconds above 0", [](double x) { return x > 0; }},
};

// In the order of blip2rt.Options; the last kOfCaptions are the caption's alone.
constexpr const char* kNames[] = {"num_captions",
                                  "num_beams",
                                  "max_new_tokens",
                                  "min_new_tokens",
                                  "length_penalty",
                                  "early_stopping",
                                  "repetition_penalty",
                                  "no_repeat_ngram_size",
                                  "bad_words",
                                  "forced_prefix",
                                  "stop_strings",
                                  "max_time",
                                  "do_sample",
                                  "temperature",
                                  "top_k",
                                  "top_p",
                                  "min_p",
                                  "seed",
                                  "raw",
                                  "pool"};
constexpr size_t kOfCaptions = 2;
constexpr const char* kSampling[] = {"temperature", "top_k", "top_p", "min_p", "seed"};

std::optional<double> parse_number(const std::string& text) {
  if (text.empty() || std::isspace(static_cast<unsigned char>(text[0])) != 0) return std::nullopt;
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  return *end == '\0' && std::isfinite(value) ? std::optional<double>(value) : std::nullopt;
}

int64_t random_seed() {
  std::random_device device;
  return static_cast<int64_t>((static_cast<uint64_t>(device()) << 32 | device()) >> 1);
}

}  // namespace

std::vector<std::pair<std::string, std::string>> read_pairs(const char* const* pairs) {
  std::vector<std::pair<std::string, std::string>> read;
  for (; pairs != nullptr && *pairs != nullptr; pairs += 2) {
    if (pairs[1] == nullptr) {
      throw Error(ErrorKind::kArgument,
                  "the option " + quoted(pairs[0]) + " has no value: give keys and values in turn");
    }
    read.emplace_back(pairs[0], pairs[1]);
  }
  return read;
}

std::optional<bool> parse_flag(const std::string& text) {
  if (text == "true") return true;
  return text == "false" ? std::optional<bool>(false) : std::nullopt;
}

std::optional<int64_t> parse_whole(const std::string& text, int64_t low, int64_t high) {
  const size_t sign = text.empty() || text[0] != '-' ? 0 : 1;
  if (text.size() == sign || text.find_first_not_of("0123456789", sign) != std::string::npos) return std::nullopt;
  errno = 0;
  const long long value = std::strtoll(text.c_str(), nullptr, 10);
  return errno == 0 && value >= low && value <= high ? std::optional<int64_t>(value) : std::nullopt;
}

std::string shown(const std::string& value) { return parse_number(value) ? value : quoted(value); }

TextOptions::TextOptions(const char* const* pairs, bool captions) {
  const size_t known = std::size(kNames) - (captions ? 0 : kOfCaptions);
  Faults unknown, names(kNames, kNames + known);
  for (auto& [name, value] : read_pairs(pairs)) {
    if (std::find(names.begin(), names.end(), name) == names.end()) {
      unknown.push_back(single_line(name));
    } else if (name == "bad_words") {
      bad_words_.push_back(std::move(value));
    } else if (name == "stop_strings") {
      stop_strings_.push_back(std::move(value));
    } else {
      values_[name] = std::move(value);
    }
  }
  if (unknown.empty()) return;
  Faults faults = {"unknown option " + joined(unknown, ", ") + ": choose from " + joined(names, ", ")};
  for (auto& [name, fault] : single_faults()) faults.push_back(std::move(fault));
  throw Error(ErrorKind::kArgument, std::move(faults));
}

TextOptions TextOptions::over(const TextOptions& defaults) const {
  TextOptions all = *this;
  all.values_.insert(defaults.values_.begin(), defaults.values_.end());
  if (bad_words_.empty()) all.bad_words_ = defaults.bad_words_;
  if (stop_strings_.empty()) all.stop_strings_ = defaults.stop_strings_;
  return all;
}

std::string TextOptions::text_of(const std::string& name) const {
  const auto found = values_.find(name);
  return found == values_.end() ? std::string() : found->second;
}

std::optional<int64_t> TextOptions::whole(const std::string& name) const {
  for (const Whole& each : kWhole) {
    if (name == each.name) return parse_whole(text_of(name), each.low, each.high);
  }
  return std::nullopt;
}

std::optional<double> TextOptions::number(const std::string& name) const {
  const std::optional<double> value = parse_number(text_of(name));
  for (const Number& each : kNumbers) {
    if (name == each.name && value && each.holds(*value)) return value;
  }
  return std::nullopt;
}

// The options that are invalid by themselves.
TextOptions::Wrong TextOptions::single_faults() const {
  Wrong wrong;
  const auto require = [&](bool holds, const char* name, const std::string& requirement) {
    if (values_.count(name) == 0 || holds) return;
    wrong.emplace_back(name, std::string(name) + " is " + shown(text_of(name)) + ": give " + requirement);
  };
  for (const Whole& each : kWhole) {
    require(whole(each.name).has_value(), each.name,
            "a whole number from " + std::to_string(each.low) + " to " + std::to_string(each.high));
  }
  for (const Number& each : kNumbers) require(number(each.name).has_value(), each.name, each.requirement);
  for (const char* name : {"do_sample", "raw"}) require(parse_flag(text_of(name)).has_value(), name, "true or false");
  const std::string early = text_of("early_stopping");
  require(early == "never" || parse_flag(early).has_value(), "early_stopping", "true, false or never");
  require(!text_of("pool").empty(), "pool", "false, or the path of a file");
  require(is_utf8(text_of("forced_prefix")), "forced_prefix", "valid UTF-8");
  for (const auto& [name, texts] : {std::pair("bad_words", &bad_words_), std::pair("stop_strings", &stop_strings_)}) {
    const auto is_bad = [](const std::string& text) { return text.empty() || !is_utf8(text); };
    const auto found = std::find_if(texts->begin(), texts->end(), is_bad);
    if (found == texts->end()) continue;
    wrong.emplace_back(name,
                       std::string(name) + " has " + quoted(*found) + ": give texts that are not empty, of UTF-8");
  }
  return wrong;
}

GenerationOptions TextOptions::resolve(const Decoding& defaults, const Room& room) const {
  TextOptions valid = *this;  // to find the faults of the others
  Faults faults;
  bool says_sampling = true;
  for (auto& [name, fault] : single_faults()) {
    valid.values_.erase(name);
    says_sampling = says_sampling && name != "do_sample";
    faults.push_back(std::move(fault));
  }
  const int64_t captions = valid.whole("num_captions").value_or(1);
  const bool sampled = valid.text_of("do_sample") == "true";
  const int64_t beams = valid.whole("num_beams").value_or(sampled ? 1 : std::max(defaults.num_beams, captions));
  const std::optional<int64_t> asked_most = valid.whole("max_new_tokens"), asked_least = valid.whole("min_new_tokens");
  const int64_t most = asked_most.value_or(  // a default yields to what the caller asked for
      std::max(std::min({defaults.max_new_tokens, room.tokens, kMaxTokens}),
               asked_least.value_or(0) == 0 ? 1 : *asked_least));
  const int64_t least = asked_least.value_or(std::min(defaults.min_new_tokens, most));
  const auto text = [](int64_t number) { return std::to_string(number); };
  if (captions > beams && !(sampled && beams == 1)) {
    faults.push_back("num_captions is " + text(captions) + ", more than num_beams, " + text(beams) + ": " +
                     (sampled ? "raise or leave out num_beams" : "raise num_beams, or set do_sample"));
  }
  if (least > most) {
    faults.push_back("min_new_tokens is " + text(least) + ", more than max_new_tokens, " + text(most));
  }
  if (room.tokens < 1) {
    faults.push_back("no token fits behind " + room.behind + ": " + room.fix);
  } else if (most > room.tokens) {
    faults.push_back(std::string(asked_most ? "max_new_tokens" : "min_new_tokens") + " is " + text(most) +
                     ", but only " + text(room.tokens) + " fit behind " + room.behind + ": " + room.fix +
                     ", or lower it");
  }
  for (const char* name : kSampling) {
    if (sampled || !says_sampling || valid.values_.count(name) == 0) continue;
    faults.push_back(std::string(name) + " is " + valid.text_of(name) + ", but sampling is off: set do_sample");
  }
  if (!faults.empty()) throw Error(ErrorKind::kArgument, std::move(faults));

  GenerationOptions options;
  options.num_beams = static_cast<int>(beams);
  options.num_return_sequences = static_cast<int>(captions);
  options.max_new_tokens = static_cast<int>(most);
  options.min_new_tokens = static_cast<int>(least);
  options.length_penalty = number("length_penalty").value_or(defaults.length_penalty);
  const std::string early = text_of("early_stopping");
  options.early_stopping = early == "true"    ? EarlyStopping::kTrue
                           : early == "never" ? EarlyStopping::kNever
                                              : EarlyStopping::kFalse;
  options.repetition_penalty = number("repetition_penalty").value_or(1.0);
  options.no_repeat_ngram_size = static_cast<int>(whole("no_repeat_ngram_size").value_or(0));
  if (const auto seconds = number("max_time")) options.max_time = *seconds;
  if (!sampled) return options;
  options.do_sample = true;
  options.top_k = static_cast<int>(whole("top_k").value_or(kTopK));
  options.seed = static_cast<uint64_t>(whole("seed").value_or(values_.count("seed") == 0 ? random_seed() : 0));
  options.temperature = number("temperature").value_or(1.0);
  options.top_p = number("top_p").value_or(1.0);
  options.min_p = number("min_p").value_or(0.0);
  return options;
}

}  // namespace blip2rt
