// Parses options, reports faults, and applies the defaults.
#include "language/options.h"

#include <algorithm>
#include <limits>
#include <random>

#include "base/utf8.h"

namespace blip2rt {
namespace {

constexpr int64_t kMaxBeams = 100;  // far beyond use: a typing error must not fill memory
constexpr int64_t kMaxTokens = 1 << 16, kMaxInt = INT32_MAX, kMaxSeed = INT64_MAX;
constexpr double kMinFloat = 1e-37, kMaxFloat = 1e38;  // float32
constexpr double kAboveZero = std::numeric_limits<double>::denorm_min(), kHuge = std::numeric_limits<double>::max();
constexpr int64_t kTopK = 50;  // default of sampling, as in Hugging Face

enum class Kind { kWhole, kNumber, kFlag, kEarlyStopping, kText, kTexts, kPool };

struct Option {
  const char* name;
  Kind kind;
  int64_t low = 0, high = 0;   // of whole numbers
  double least = 0, most = 0;  // of other numbers
  const char* requirement = "";
};

constexpr Option whole(const char* name, int64_t low, int64_t high) { return {name, Kind::kWhole, low, high}; }

constexpr Option number(const char* name, double least, double most, const char* requirement) {
  return {name, Kind::kNumber, 0, 0, least, most, requirement};
}

constexpr const char *kPositive = "a number above 0, from 1e-37 to 1e+38", *kShare = "a number from 0 to 1";

// In the order of blip2rt.Options; the last kOfCaptions are those of captions alone.
constexpr Option kOptions[] = {whole("num_captions", 1, kMaxBeams),
                               whole("num_beams", 1, kMaxBeams),
                               whole("max_new_tokens", 1, kMaxTokens),
                               whole("min_new_tokens", 0, kMaxTokens),
                               number("length_penalty", -kMaxFloat, kMaxFloat, "a number from -1e+38 to 1e+38"),
                               {"early_stopping", Kind::kEarlyStopping},
                               number("repetition_penalty", kMinFloat, kMaxFloat, kPositive),
                               whole("no_repeat_ngram_size", 0, kMaxInt),
                               {"bad_words", Kind::kTexts},
                               {"forced_prefix", Kind::kText},
                               {"stop_strings", Kind::kTexts},
                               number("max_time", kAboveZero, kHuge, "a number of seconds above 0"),
                               {"do_sample", Kind::kFlag},
                               number("temperature", kMinFloat, kMaxFloat, kPositive),
                               whole("top_k", 0, kMaxInt),
                               number("top_p", 0, 1, kShare),
                               number("min_p", 0, 1, kShare),
                               whole("seed", 0, kMaxSeed),
                               {"raw", Kind::kFlag},
                               {"pool", Kind::kPool}};
constexpr size_t kOfCaptions = 2;
constexpr const char* kSampling[] = {"temperature", "top_k", "top_p", "min_p", "seed"};

constexpr OptionWording kPython = {"True or False", "True, False or 'never'", "a str",
                                   "a str or a list of str, none of them empty, of valid Unicode",
                                   "False, or the path of a file"};
constexpr OptionWording kStrings = {"true or false", "true, false or never", "valid UTF-8",
                                    "texts that are not empty, of UTF-8", "false, or the path of a file"};

bool is_text(const std::string& text) { return !text.empty() && is_utf8(text); }

bool holds(const Option& option, const OptionValue& given) {
  const auto* whole = std::get_if<int64_t>(&given.value);
  const auto* number = std::get_if<double>(&given.value);
  const auto* text = std::get_if<std::string>(&given.value);
  const auto* texts = std::get_if<std::vector<std::string>>(&given.value);
  const bool is_flag = std::holds_alternative<bool>(given.value);
  switch (option.kind) {
    case Kind::kWhole: return whole != nullptr && *whole >= option.low && *whole <= option.high;
    case Kind::kNumber: {
      if (whole == nullptr && number == nullptr) return false;
      const double value = number != nullptr ? *number : static_cast<double>(*whole);
      return value >= option.least && value <= option.most;
    }
    case Kind::kFlag: return is_flag;
    case Kind::kEarlyStopping: return is_flag || (text != nullptr && *text == "never");
    case Kind::kText: return text != nullptr && is_utf8(*text);
    case Kind::kTexts:
      return text != nullptr ? is_text(*text) : texts != nullptr && std::all_of(texts->begin(), texts->end(), is_text);
    case Kind::kPool: break;
  }
  return is_flag ? !std::get<bool>(given.value) : text != nullptr && !text->empty();
}

std::string requirement_of(const Option& option, const OptionWording& wording) {
  switch (option.kind) {
    case Kind::kWhole:
      return "a whole number from " + std::to_string(option.low) + " to " + std::to_string(option.high);
    case Kind::kNumber: return option.requirement;
    case Kind::kFlag: return wording.flag;
    case Kind::kEarlyStopping: return wording.early_stopping;
    case Kind::kText: return wording.text;
    case Kind::kTexts: return wording.texts;
    case Kind::kPool: break;
  }
  return wording.pool;
}

// Reads the value of a C caller; one that is not of the option's type stays without a value.
OptionValue parse(const Option& option, const std::string& text) {
  OptionValue given{{}, shown(text)};
  const auto keep = [&given](const auto& parsed) {
    if (parsed) given.value = *parsed;
    return parsed.has_value();
  };
  switch (option.kind) {
    case Kind::kWhole: keep(parse_whole(text, INT64_MIN, INT64_MAX)); break;
    case Kind::kNumber: keep(parse_number(text)); break;
    case Kind::kFlag: keep(parse_flag(text)); break;
    case Kind::kEarlyStopping:
      if (!keep(parse_flag(text))) given.value = text;
      break;
    default: given.value = text;
  }
  return given;
}

int64_t random_seed() {
  std::random_device device;
  return static_cast<int64_t>((static_cast<uint64_t>(device()) << 32 | device()) >> 1);
}

}  // namespace

CallerOptions::CallerOptions(const char* const* pairs, bool captions) : wording_(&kStrings) {
  const Option* const last = std::end(kOptions) - (captions ? 0 : kOfCaptions);
  std::vector<std::string> unknown;
  for (auto& [name, text] : read_pairs(pairs)) {
    const auto is_it = [&wanted = name](const Option& option) { return wanted == option.name; };
    const Option* const option = std::find_if(std::begin(kOptions), last, is_it);
    if (option == last) {
      unknown.push_back(single_line(name));
    } else if (option->kind == Kind::kTexts) {  // of several, each has a pair
      OptionValue& given = values_.try_emplace(name, OptionValue{std::vector<std::string>(), ""}).first->second;
      if (!is_text(text)) given.shown = quoted(text);
      std::get<std::vector<std::string>>(given.value).push_back(std::move(text));
    } else {
      values_[name] = parse(*option, text);
    }
  }
  require_known(unknown, captions);
}

CallerOptions::CallerOptions(Values given, std::vector<std::string> unknown, const CallerOptions& defaults,
                             bool captions)
    : values_(std::move(given)), wording_(&kPython) {
  values_.insert(defaults.values_.begin(), defaults.values_.end());
  require_known(unknown, captions);
}

std::vector<std::string> CallerOptions::names(bool captions) {
  std::vector<std::string> names;
  for (const Option& option : kOptions) names.emplace_back(option.name);
  if (!captions) names.resize(names.size() - kOfCaptions);
  return names;
}

void CallerOptions::require_known(const std::vector<std::string>& unknown, bool captions) const {
  if (unknown.empty()) return;
  Faults faults = {"unknown option " + joined(unknown, ", ") + ": choose from " + joined(names(captions), ", ")};
  for (auto& [name, fault] : single_faults()) faults.push_back(std::move(fault));
  throw Error(ErrorKind::kArgument, std::move(faults));
}

CallerOptions CallerOptions::over(const CallerOptions& defaults) const {
  CallerOptions all = *this;
  all.values_.insert(defaults.values_.begin(), defaults.values_.end());
  return all;
}

std::string CallerOptions::pool() const {
  const std::string given = value_or("pool", std::string());
  return find<bool>("pool") != nullptr || given == "false" ? "none" : given;
}

std::string CallerOptions::forced_prefix() const {
  const std::string text = value_or("forced_prefix", std::string());
  return is_utf8(text) ? text : "";
}

std::vector<std::string> CallerOptions::texts(const char* name) const {
  if (const auto* text = find<std::string>(name)) return {*text};
  return value_or(name, std::vector<std::string>());
}

double CallerOptions::number_or(const char* name, double otherwise) const {
  if (const auto* whole = find<int64_t>(name)) return static_cast<double>(*whole);
  return value_or(name, otherwise);
}

// The options that are invalid by themselves: name and fault, in the table's order.
CallerOptions::Wrong CallerOptions::single_faults() const {
  Wrong wrong;
  for (const Option& option : kOptions) {
    const auto found = values_.find(option.name);
    if (found == values_.end() || holds(option, found->second)) continue;
    wrong.emplace_back(option.name, std::string(option.name) + " is " + found->second.shown + ": give " +
                                        requirement_of(option, *wording_));
  }
  return wrong;
}

// How many tokens an answer has at most and at least, and how it is searched.
struct CallerOptions::Sizes {
  int64_t captions, beams, most, least;
  bool sampled;
};

CallerOptions::Sizes CallerOptions::sizes(const Decoding& defaults, const Room& room) const {
  const int64_t captions = value_or<int64_t>("num_captions", 1), asked_least = value_or<int64_t>("min_new_tokens", 0);
  const bool sampled = value_or("do_sample", false);
  const int64_t beams = value_or<int64_t>("num_beams", sampled ? 1 : std::max(defaults.num_beams, captions));
  const int64_t most = value_or<int64_t>(  // a default yields to what the caller asked for
      "max_new_tokens",
      std::max(std::min({defaults.max_new_tokens, room.tokens, kMaxTokens}), asked_least == 0 ? 1 : asked_least));
  return {captions, beams, most, value_or<int64_t>("min_new_tokens", std::min(defaults.min_new_tokens, most)), sampled};
}

// The faults of options that are valid by themselves.
Faults CallerOptions::joint_faults(const Sizes& sizes, const Room& room, bool says_sampling) const {
  Faults faults;
  const auto text = [](int64_t number) { return std::to_string(number); };
  const auto& [captions, beams, most, least, sampled] = sizes;
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
    faults.push_back(std::string(values_.count("max_new_tokens") != 0 ? "max_new_tokens" : "min_new_tokens") + " is " +
                     text(most) + ", but only " + text(room.tokens) + " fit behind " + room.behind + ": " + room.fix +
                     ", or lower it");
  }
  for (const char* name : kSampling) {
    const auto found = values_.find(name);
    if (sampled || !says_sampling || found == values_.end()) continue;
    faults.push_back(std::string(name) + " is " + found->second.shown + ", but sampling is off: set do_sample");
  }
  return faults;
}

GenerationOptions CallerOptions::resolve(const Decoding& defaults, const Room& room) const {
  CallerOptions valid = *this;  // to find the faults of the others
  Faults faults;
  bool says_sampling = true;
  for (auto& [name, fault] : single_faults()) {
    valid.values_.erase(name);
    says_sampling = says_sampling && name != "do_sample";
    faults.push_back(std::move(fault));
  }
  const Sizes sizes = valid.sizes(defaults, room);
  for (std::string& fault : valid.joint_faults(sizes, room, says_sampling)) faults.push_back(std::move(fault));
  if (!faults.empty()) throw Error(ErrorKind::kArgument, std::move(faults));

  GenerationOptions options;
  options.num_beams = static_cast<int>(sizes.beams);
  options.num_return_sequences = static_cast<int>(sizes.captions);
  options.max_new_tokens = static_cast<int>(sizes.most);
  options.min_new_tokens = static_cast<int>(sizes.least);
  options.length_penalty = number_or("length_penalty", defaults.length_penalty);
  const bool never = find<std::string>("early_stopping") != nullptr, early = value_or("early_stopping", false);
  options.early_stopping = never ? EarlyStopping::kNever : early ? EarlyStopping::kTrue : EarlyStopping::kFalse;
  options.repetition_penalty = number_or("repetition_penalty", 1.0);
  options.no_repeat_ngram_size = static_cast<int>(value_or<int64_t>("no_repeat_ngram_size", 0));
  options.max_time = number_or("max_time", options.max_time);
  if (!sizes.sampled) return options;
  options.do_sample = true;
  options.top_k = static_cast<int>(value_or("top_k", kTopK));
  const auto* seed = find<int64_t>("seed");
  options.seed = static_cast<uint64_t>(seed == nullptr ? random_seed() : *seed);
  options.temperature = number_or("temperature", 1.0);
  options.top_p = number_or("top_p", 1.0);
  options.min_p = number_or("min_p", 0.0);
  return options;
}

}  // namespace blip2rt
