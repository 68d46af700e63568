// Compares a picture with every caption: 100,000 take about 1.5 milliseconds by the int8 kernels.
#include "runtime/caption_pool.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

#include "base/tensor.h"
#include "base/utf8.h"
#include "english/answer_words.h"
#include "kernels/int8/matmul.h"

namespace blip2rt {
namespace {

constexpr std::string_view kMagic("blip2rt-pool 2\n\0", 16);
constexpr size_t kFingerprintBytes = 64, kHeaderBytes = 128, kAlignment = 64;
constexpr size_t kMaxWidth = 8192, kMaxTokens = 1024;     // of an embedding; of a caption
constexpr size_t kBlock = 1024;                           // captions that are compared at once
constexpr size_t kLeast = 8, kMost = 150, kShare = 1000;  // nearest captions: one in kShare

// Of answers, in units of log-probability; chosen on questions about Pascal Sentences: recipes/nano/LOG.md.
constexpr float kPoolStrength = 0.7F;          // exponent of how much more often the nearest captions have a token
constexpr float kShareFloor = 0.003F;          // added to the shares that are compared
constexpr float kNearness = 40;                // how fast a caption's weight falls with its cosine
constexpr float kRepeated = 3, kSingular = 6;  // subtracted; the last chosen on COCO's training photographs

struct Header {  // behind the magic and the fingerprint
  uint32_t captions, embed_width, code_width, vocab_size, tokens, token_bytes;
};

// Appends numbers, and zeros up to the next section.
template <class T>
void append_section(std::string& file, const std::vector<T>& numbers) {
  file.append(reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(T));
  file.resize((file.size() + kAlignment - 1) / kAlignment * kAlignment);
}

// How rare each token is in captions: log(N / how many have it), or log(N).
std::vector<float> rarity_of(const PoolCaptions& captions) {
  std::vector<size_t> counts(captions.vocab_size);
  for (const TokenText& text : captions.texts) {
    for (const int32_t token : std::set<int32_t>(text.begin(), text.end())) ++counts.at(static_cast<size_t>(token));
  }
  const auto all = static_cast<float>(std::log(static_cast<double>(captions.texts.size())));
  std::vector<float> rarity;
  for (const size_t count : counts) {
    const double shared = count == 0 ? 0 : std::log(static_cast<double>(count));
    rarity.push_back(static_cast<float>(static_cast<double>(all) - shared));
  }
  return rarity;
}

std::runtime_error damaged() { return std::runtime_error("it is damaged"); }

template <class T>
T* aligned(std::vector<T>& memory) {
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  return memory.data() + (kAlignment - address % kAlignment) % kAlignment;
}

}  // namespace

std::shared_ptr<const CaptionPool> CaptionPool::open(const std::string& path) {
  const std::shared_ptr<CaptionPool> pool(new CaptionPool());
  pool->file_.emplace(path);
  pool->read(pool->file_->bytes());
  return pool;
}

bool CaptionPool::is_pool(std::string_view beginning) { return beginning.substr(0, kMagic.size()) == kMagic; }

std::string CaptionPool::with_fingerprint(std::string file, std::string_view fingerprint) {
  if (!is_pool(file) || file.size() < kHeaderBytes || fingerprint.size() != kFingerprintBytes) throw damaged();
  return file.replace(kMagic.size(), kFingerprintBytes, fingerprint);
}

std::string CaptionPool::pack(const PoolCaptions& captions) {
  const size_t count = captions.texts.size(), width = captions.projection.size() / captions.embed_width;
  if (captions.fingerprint.size() != kFingerprintBytes || captions.codes.size() != count * width) {
    throw std::runtime_error("codes and projection must be as wide, and there must be a code for each text");
  }
  std::vector<int8_t> codes;
  std::vector<float> scales;
  std::vector<uint32_t> starts = {0}, tokens;
  for (size_t caption = 0; caption < count; ++caption) {
    const float* code = &captions.codes[caption * width];
    float largest = 0;
    for (size_t i = 0; i < width; ++i) largest = std::max(largest, std::fabs(code[i]));
    scales.push_back(largest / 127);
    for (size_t i = 0; i < width; ++i) {
      codes.push_back(static_cast<int8_t>(std::nearbyint(code[i] / std::max(scales.back(), 1e-30F))));
    }
    tokens.insert(tokens.end(), captions.texts[caption].begin(), captions.texts[caption].end());
    starts.push_back(static_cast<uint32_t>(tokens.size()));
  }
  const bool narrow = captions.vocab_size <= 1 << 16;
  const auto size = [](size_t number) { return static_cast<uint32_t>(number); };
  const Header header = {size(count),         size(captions.embed_width),
                         size(width),         size(captions.vocab_size),
                         size(tokens.size()), narrow ? 2U : 4U};
  std::string file(kMagic);
  file += captions.fingerprint;
  file.append(reinterpret_cast<const char*>(&header), sizeof header);
  file.resize(kHeaderBytes);
  append_section(file, captions.projection);
  append_section(file, codes);
  append_section(file, scales);
  append_section(file, starts);
  append_section(file, rarity_of(captions));
  if (narrow) {
    append_section(file, std::vector<uint16_t>(tokens.begin(), tokens.end()));
  } else {
    append_section(file, tokens);
  }
  return file;
}

std::shared_ptr<const CaptionPool> CaptionPool::of_bytes(std::string bytes) {
  const std::shared_ptr<CaptionPool> pool(new CaptionPool());
  pool->bytes_ = std::move(bytes);
  pool->read(pool->bytes_);
  return pool;
}

void CaptionPool::read(std::string_view bytes) {
  if (bytes.size() < kHeaderBytes || !is_pool(bytes)) {
    throw std::runtime_error("it is not a pool of this version");
  }
  Header header;
  std::memcpy(&header, bytes.data() + kMagic.size() + kFingerprintBytes, sizeof header);
  fingerprint_ = bytes.substr(kMagic.size(), kFingerprintBytes);
  count_ = header.captions;
  embed_width_ = header.embed_width;
  code_width_ = header.code_width;
  vocab_size_ = header.vocab_size;
  token_count_ = header.tokens;
  token_bytes_ = header.token_bytes;
  const bool widths = embed_width_ > 0 && embed_width_ <= kMaxWidth && code_width_ > 0 && code_width_ <= embed_width_;
  if (count_ == 0 || !widths || (token_bytes_ != 2 && token_bytes_ != 4) || !is_utf8(fingerprint_)) throw damaged();
  size_t at = kHeaderBytes;
  const auto section = [&](uint64_t size) {
    if (at > bytes.size() || size > bytes.size() - at) throw damaged();
    const char* start = bytes.data() + at;
    at = (at + static_cast<size_t>(size) + kAlignment - 1) / kAlignment * kAlignment;
    return start;
  };
  projection_ = reinterpret_cast<const float*>(section(embed_width_ * code_width_ * sizeof(float)));
  codes_ = reinterpret_cast<const int8_t*>(section(uint64_t{count_} * code_width_));
  scales_ = reinterpret_cast<const float*>(section(uint64_t{count_} * sizeof(float)));
  starts_ = reinterpret_cast<const uint32_t*>(section((uint64_t{count_} + 1) * sizeof(uint32_t)));
  rarity_ = reinterpret_cast<const float*>(section(uint64_t{vocab_size_} * sizeof(float)));
  tokens_ = section(uint64_t{token_count_} * token_bytes_);
}

std::vector<NearCaption> CaptionPool::nearest_captions(const float* image_embeds, size_t queries, size_t width) const {
  if (queries == 0 || width != embed_width_) {
    throw std::runtime_error("image_embeds must be " + std::to_string(embed_width_) + " wide, of one query or more");
  }
  std::vector<float> rows(queries * code_width_);  // the queries in the space of the codes
  for (size_t query = 0; query < queries; ++query) {
    for (size_t i = 0; i < embed_width_; ++i) {
      const float value = image_embeds[query * embed_width_ + i];
      for (size_t j = 0; j < code_width_; ++j)
        rows[query * code_width_ + j] += value * projection_[i * code_width_ + j];
    }
  }
  const std::vector<float> cosines = largest_products(std::move(rows), queries);
  const size_t found = std::min(count_, std::clamp((count_ + kShare / 2) / kShare, kLeast, kMost));
  std::vector<NearCaption> nearest;  // a heap, the farthest first
  for (size_t caption = 0; caption < count_; ++caption) {
    if (nearest.size() == found) {
      if (-cosines[caption] >= nearest.front().distance) continue;
      std::pop_heap(nearest.begin(), nearest.end());
      nearest.pop_back();
    }
    nearest.push_back({-cosines[caption], caption});
    std::push_heap(nearest.begin(), nearest.end());
  }
  std::sort_heap(nearest.begin(), nearest.end());
  return nearest;
}

TokenText CaptionPool::text_of(size_t caption) const {
  const size_t first = starts_[caption], last = starts_[caption + 1];
  if (first > last || last > token_count_ || last - first > kMaxTokens) throw damaged();
  TokenText text;
  for (size_t at = first; at < last; ++at) {
    uint32_t token = 0;
    std::memcpy(&token, tokens_ + at * token_bytes_, token_bytes_);
    text.push_back(static_cast<int32_t>(token));
  }
  return text;
}

std::vector<TokenText> CaptionPool::nearest(const float* image_embeds, size_t queries, size_t width) const {
  std::vector<TokenText> texts;
  for (const NearCaption& one : nearest_captions(image_embeds, queries, width)) texts.push_back(text_of(one.number));
  return texts;
}

// rows (queries, D) -> the largest product of each caption's code with one of them (N); never a NaN.
std::vector<float> CaptionPool::largest_products(std::vector<float> rows, size_t queries) const {
  std::vector<float> largest(count_, -std::numeric_limits<float>::max());
  const auto offer = [&](size_t caption, float product) { largest[caption] = std::max(largest[caption], product); };
  const Int8Kernel* kernel = int8_kernel();
  if (kernel == nullptr) {
    for (size_t caption = 0; caption < count_; ++caption) {
      for (size_t query = 0; query < queries; ++query) {
        float product = 0;
        for (size_t i = 0; i < code_width_; ++i) {
          product += rows[query * code_width_ + i] * static_cast<float>(codes_[caption * code_width_ + i]);
        }
        offer(caption, scales_[caption] * product);
      }
    }
    return largest;
  }
  const size_t k = code_width_, together = kernel->tiles_per_call(k);
  std::vector<uint8_t> values(kernel->values_size(queries, k) + kAlignment),
      scratch(kernel->scratch_size(k) + kAlignment);
  std::vector<float> scales(queries), products(product_of(queries, kBlock));
  std::vector<int32_t> zeros(queries);
  const Int8Input input = {queries, kernel->row_stride(k), aligned(values), scales.data(), zeros.data()};
  for (size_t first = 0; first < queries; first += Int8Kernel::kRows) {
    kernel->quantize(rows.data(), first, std::min(Int8Kernel::kRows, queries - first), k, input);
  }
  for (size_t block = 0; block < count_; block += kBlock) {
    const Int8Matrix matrix = {std::min(kBlock, count_ - block), k, codes_ + block * k, scales_ + block, nullptr};
    const size_t tiles = (matrix.n + kernel->tile - 1) / kernel->tile;
    for (size_t tile = 0; tile < tiles; tile += together) {
      kernel->multiply(matrix, input, products.data(), tile, std::min(tiles, tile + together), aligned(scratch));
    }
    for (size_t query = 0; query < queries; ++query) {
      for (size_t i = 0; i < matrix.n; ++i) offer(block + i, products[query * matrix.n + i]);
    }
  }
  return largest;
}

std::shared_ptr<const Guide> CaptionPool::guide(const float* image_embeds, size_t queries, size_t width,
                                                int64_t end) const {
  const std::shared_ptr<const float> rarity(shared_from_this(), rarity_);
  return std::make_shared<const Guide>(nearest(image_embeds, queries, width), rarity, vocab_size_,
                                       static_cast<int32_t>(end));
}

std::shared_ptr<const Guide> CaptionPool::answer_guide(const float* image_embeds, size_t queries, size_t width,
                                                       const std::string& question, const TokenText& asked,
                                                       const Vocabulary* vocabulary) const {
  if (vocabulary != nullptr && vocabulary->size() < vocab_size_)
    throw std::runtime_error("the vocabulary is not the pool's");
  const auto outside = [this](int32_t token) { return token < 0 || static_cast<size_t>(token) >= vocab_size_; };
  const std::vector<NearCaption> nearest = nearest_captions(image_embeds, queries, width);
  std::vector<float> bias(vocab_size_);  // at first, the weight of the captions that have the token
  float total = 0;
  for (const NearCaption& caption : nearest) {
    const float weight = std::exp(kNearness * (nearest.front().distance - caption.distance));
    const TokenText text = text_of(caption.number);
    for (const int32_t token : std::set<int32_t>(text.begin(), text.end())) {
      if (outside(token)) throw damaged();
      bias[static_cast<size_t>(token)] += weight;
    }
    total += weight;
  }
  const std::vector<bool> singular =
      vocabulary != nullptr ? singular_tokens(*vocabulary) : std::vector<bool>(vocab_size_);
  for (size_t token = 0; token < vocab_size_; ++token) {
    const float share = std::exp(-rarity_[token]);  // of all captions
    bias[token] = kPoolStrength * std::log((bias[token] / total + kShareFloor) / (share + kShareFloor));
    if (singular[token]) bias[token] -= kSingular;
  }
  if (!offers_choice(question)) {
    for (const int32_t token : std::set<int32_t>(asked.begin(), asked.end())) {
      if (!outside(token)) bias[static_cast<size_t>(token)] -= kRepeated;
    }
  }
  return std::make_shared<const Guide>(std::move(bias));
}

}  // namespace blip2rt
