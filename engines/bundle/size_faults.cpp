// Sizes that two parts of a manifest give differently: its fields, its calibration, and the tensors of its graphs.
#include <charconv>
#include <initializer_list>
#include <optional>

#include "base/utf8.h"
#include "bundle/manifest.h"

namespace blip2rt {
namespace {

// What an axis should be, in the words of the manifest. Without a size, any size will do.
struct Expected {
  std::string name = "";
  std::optional<int64_t> size = std::nullopt;
  bool fixed = false;  // whether a free axis is a fault: the core reads memory of this size
};

std::optional<int64_t> fixed(const TensorSpec* tensor, size_t axis) {
  if (tensor == nullptr || axis >= tensor->shape.size()) return std::nullopt;
  const int64_t* size = std::get_if<int64_t>(&tensor->shape[axis]);
  return size == nullptr ? std::nullopt : std::optional<int64_t>(*size);
}

// Checks the tensors of one component.
class Tensors {
 public:
  Tensors(Faults& faults, const Manifest& manifest, const char* name)
      : faults_(faults), name_(name), component_(manifest.component(name)) {}

  void reads(const char* tensor, std::initializer_list<Expected> shape) {
    if (component_ != nullptr) check(" reads ", component_->input(tensor), shape);
  }
  void writes(const char* tensor, std::initializer_list<Expected> shape) {
    if (component_ != nullptr) check(" writes ", component_->output(tensor), shape);
  }
  const TensorSpec* output(const char* tensor) const {
    return component_ == nullptr ? nullptr : component_->output(tensor);
  }
  // All of the cache's tensors: (B, heads, T, width).
  void caches(std::initializer_list<Expected> shape) {
    if (component_ == nullptr) return;
    for (const TensorSpec& tensor : component_->inputs) {
      if (tensor.name.compare(0, 9, "past_key_") == 0 || tensor.name.compare(0, 11, "past_value_") == 0) {
        check(" reads ", &tensor, shape);
      }
    }
  }

 private:
  void check(const char* verb, const TensorSpec* tensor, std::initializer_list<Expected> shape) {
    if (tensor == nullptr) return;  // component_faults reports it
    const std::string found = ", but " + name_ + verb + tensor->name + " " + shown_shape(*tensor);
    if (tensor->shape.size() != shape.size()) {
      faults_.push_back(tensor->name + " has " + std::to_string(shape.size()) + " axes" + found);
      return;
    }
    size_t axis = 0;
    for (const Expected& expected : shape) {
      const std::optional<int64_t> size = fixed(tensor, axis++);
      if (size ? size == expected.size.value_or(*size) : !expected.fixed) continue;
      faults_.push_back(expected.name + " is " + (expected.size ? std::to_string(*expected.size) : "fixed") + found);
      return;
    }
  }

  Faults& faults_;
  const std::string name_;
  const Component* component_;
};

void check_language(Faults& faults, const Manifest& manifest) {
  const LlmSpec& llm = *manifest.llm;
  const Expected any, width = {"llm.hidden_size", llm.hidden_size};
  Tensors(faults, manifest, "qformer")
      .writes("prefix_embeds",
              {any, {"llm.prefix_length", llm.prefix_length, true}, {"llm.hidden_size", llm.hidden_size, true}});
  Tensors(faults, manifest, "embed").writes("token_embeds", {any, any, width});
  Tensors(faults, manifest, "encoder").reads("inputs_embeds", {any, any, width});
  Tensors model(faults, manifest, "llm");
  model.reads("inputs_embeds", {any, any, width});
  model.writes("logits", {any, {"llm.vocab_size", llm.vocab_size}});
  model.caches({any, {"llm.kv_heads", llm.kv_heads}, any, {"llm.head_dim", llm.head_dim}});
  if (!manifest.retrieval || !manifest.retrieval->mean_prefix) return;
  const std::string& prefix = *manifest.retrieval->mean_prefix;
  const auto file = manifest.files.find(prefix);
  if (file != manifest.files.end() && file->second.size != 4 * llm.prefix_length * llm.hidden_size) {
    faults.push_back(shortened(prefix) + " is not of " + std::to_string(llm.prefix_length) + " x " +
                     std::to_string(llm.hidden_size) + " float32");
  }
}

void check_images(Faults& faults, const Manifest& manifest) {
  const ImageSpec& image = manifest.image;
  const Expected any;
  Tensors vision(faults, manifest, "vision");
  const std::string pixels = "image is " + std::to_string(image.height) + " x " + std::to_string(image.width);
  const TensorSpec* input = manifest.has("vision") ? manifest.components.at("vision").input("pixels") : nullptr;
  const int64_t sizes[] = {3, image.height, image.width};
  bool fits = input == nullptr || input->shape.size() == 4;
  for (size_t i = 0; fits && input != nullptr && i < 3; ++i) fits = fixed(input, i + 1).value_or(sizes[i]) == sizes[i];
  if (!fits) faults.push_back(pixels + ", but vision reads pixels " + shown_shape(*input));
  vision.writes("vision_features", {any, any, any});
  const TensorSpec* features = vision.output("vision_features");
  const Expected positions = {"axis 1 of vision_features", fixed(features, 1)};
  const Expected width = {"axis 2 of vision_features", fixed(features, 2)};
  for (const char* reader : {"qformer", "image_embed", "itm"}) {
    Tensors(faults, manifest, reader).reads("vision_features", {any, positions, width});
  }
}

// A signal query_N is the cosine with one query.
bool is_query(const std::string& signal, int64_t queries) {
  int64_t query = -1;
  const char* end = signal.data() + signal.size();
  const auto [stop, error] = std::from_chars(signal.data() + 6, end, query);
  return stop == end && error == std::errc() && query >= 0 && query < queries;
}

void check_calibration(Faults& faults, const Calibration& calibration, const TensorSpec& embeds) {
  const std::string found = ", but image_embed writes image_embeds " + shown_shape(embeds);
  bool weighs_mean = false;
  for (const auto& [name, regression] : calibration.regressions()) {
    for (const auto& entry : regression->weights) {
      const std::string& signal = entry.first;
      weighs_mean = weighs_mean || signal == "base_cosine";
      if (signal.compare(0, 6, "query_") == 0 && !is_query(signal, fixed(&embeds, 1).value_or(0))) {
        faults.push_back(name + " weighs " + in_quotes(signal) + found);
      }
      if (signal == "score" && name != "calibration.caption") {
        faults.push_back(name + " weighs 'score', which only captions have");
      }
    }
  }
  const auto check_width = [&](const char* name, const std::vector<double>& numbers, bool needed) {
    const auto count = static_cast<int64_t>(numbers.size());
    if (count == fixed(&embeds, 2).value_or(count) ? count > 0 || !needed : count == 0 && !needed) return;
    faults.push_back(std::string(name) + " has " + std::to_string(count) + " numbers" + found);
  };
  check_width("calibration.mean_text", calibration.mean_text, weighs_mean);
  check_width("calibration.label_text", calibration.label_text, calibration.nearness.has_value());
}

void check_embeddings(Faults& faults, const Manifest& manifest) {
  const Expected any;
  Tensors image(faults, manifest, "image_embed");
  image.writes("image_embeds", {any, any, {"axis 2 of image_embeds", std::nullopt, true}});
  const TensorSpec* embeds = image.output("image_embeds");
  Tensors(faults, manifest, "text_embed")
      .writes("text_embeds", {any, {"axis 2 of image_embeds", fixed(embeds, 2), true}});
  Tensors(faults, manifest, "itm").writes("itm_logits", {any, {"axis 1 of itm_logits", 2, true}});
  if (manifest.calibration && embeds != nullptr) check_calibration(faults, *manifest.calibration, *embeds);
}

}  // namespace

Faults size_faults(const Manifest& manifest) {
  Faults faults;
  check_images(faults, manifest);
  check_embeddings(faults, manifest);
  if (manifest.llm) check_language(faults, manifest);
  return faults;
}

}  // namespace blip2rt
