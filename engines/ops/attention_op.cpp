// Runs the attention kernels on a run's threads and tensors.
#include "ops/attention_op.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "kernels/attention/attention.h"
#include "kernels/attention/encoder_attention.h"
#include "ops/custom_op.h"

namespace blip2rt {
namespace {

void require(bool holds, const char* what) {
  if (!holds) throw std::runtime_error(std::string("attention: ") + what);
}

// Limits far above real sizes, so that products of sizes do not overflow.
constexpr int64_t kMaxHeads = 1 << 14, kMaxWidth = 1 << 14, kMaxPositions = 1 << 20;

bool has_axes(const TensorView& tensor, std::initializer_list<size_t> axes) {
  size_t i = 0;
  for (size_t wanted : axes) {
    if (i >= tensor.rank || static_cast<size_t>(tensor.axes[i++]) != wanted) return false;
  }
  return tensor.rank == axes.size();
}

void attend(OperatorRun& run, const Attention& a) {
  if (a.rows == 0 || a.length == 0) return;
  const AttentionKernel& kernel = *attention_kernel();
  const size_t blocks = (a.rows * a.length * a.group_size() + kQueryBlock - 1) / kQueryBlock;
  // A part should have some ten thousand products to be worth a thread.
  constexpr size_t kMinPartProducts = 32 * 1024;
  const auto part_size = [&](size_t work) { return std::max<size_t>(1, kMinPartProducts / std::max<size_t>(1, work)); };
  if (a.key != nullptr) {
    parallel_for(run, a.rows * a.kv_heads, part_size(a.length * a.width), [&](size_t first, size_t last) {
      for (size_t i = first; i < last; ++i) kernel.append(a, i % a.rows, i / a.rows);
    });
  }
  const size_t floats = AttentionKernel::scratch_floats(a);
  parallel_for(run, a.kv_heads * blocks, part_size(kQueryBlock * a.max_visible() * a.width),
               [&](size_t first, size_t last) {
                 thread_local Buffer scratch;
                 float* memory = scratch.get<float>(floats);
                 for (size_t i = first; i < last; ++i) kernel.attend(a, i / blocks, i % blocks, memory);
               });
}

struct AttentionOp final : Operator {
  enum Input : size_t { kQuery, kKey, kValue, kPastKey, kPastValue, kRows, kCos, kSin, kBias };
  static constexpr const char* kName = kAttention;
  static constexpr DType kInputs[] = {DType::kFloat32, DType::kFloat32, DType::kFloat32,
                                      DType::kFloat32, DType::kFloat32, DType::kInt32,
                                      DType::kFloat32, DType::kFloat32, DType::kFloat32};
  static constexpr size_t kOutputs = 3;
  static bool optional(size_t index) { return index == kKey || index == kValue || index > kRows; }
  size_t heads, kv_heads, window;
  float scale, softcap;

  explicit AttentionOp(const OperatorAttributes& info)
      : heads(info.size("num_heads", kMaxHeads)),
        kv_heads(info.size("kv_num_heads", kMaxHeads)),
        window(static_cast<size_t>(std::max<int64_t>(0, info.integer("local_window_size")))),
        scale(info.number("scale")),
        softcap(info.number("softcap")) {
    require(heads % kv_heads == 0, "num_heads is not a multiple of kv_num_heads");
  }

  void compute(OperatorRun& run) const override {
    const TensorView query = run.input(kQuery), key = run.input(kKey), value = run.input(kValue);
    const TensorView past_key = run.input(kPastKey), past_value = run.input(kPastValue);
    const TensorView rows = run.input(kRows);
    require(query.rank == 3 && past_key.rank == 4 && past_value.rank == 4, "query or past has too few axes");
    require(past_key.size(1) == kv_heads && std::equal(past_key.axes, past_key.axes + 4, past_value.axes),
            "past has the wrong shape");
    const size_t width = past_key.size(3), of_queries = heads * width, of_keys = kv_heads * width;
    require(width > 0 && width <= kMaxWidth && width % Attention::kWidthMultiple == 0,
            "head width is not a multiple of 8");
    require(query.size(2) == of_queries + (key ? 0 : 2 * of_keys), "query has the wrong width");
    require(!key == !value, "there are keys without values, or values without keys");
    require(!key || (has_axes(key, {query.size(0), query.size(1), of_keys}) &&
                     has_axes(value, {query.size(0), query.size(1), of_keys})),
            "key or value does not fit query");
    require(has_axes(rows, {query.size(0), 4}), "cache_rows is not (B, 4)");

    Attention a = {};
    a.rows = query.size(0);
    a.length = query.size(1);
    a.heads = heads;
    a.kv_heads = kv_heads;
    a.width = width;
    a.query = query.as<float>();
    a.query_strides = {a.length * query.size(2), query.size(2), width};
    a.key = key ? key.as<float>() : a.query + of_queries;
    a.value = key ? value.as<float>() : a.key + of_keys;
    a.key_strides = key ? Strides{a.length * of_keys, of_keys, width} : a.query_strides;
    a.capacity = past_key.size(2);
    a.cache_rows = rows.as<CacheRow>();
    a.scale = scale == 0 ? 1.0f / std::sqrt(static_cast<float>(width)) : scale;
    a.softcap = softcap;
    a.window = window;
    const int64_t out_axes[] = {query.axes[0], query.axes[1], static_cast<int64_t>(of_queries)};
    a.out = run.output(0, out_axes, 3);
    a.out_strides = {a.length * of_queries, of_queries, width};
    a.keys = run.output(1, past_key.axes, past_key.rank);
    a.values = run.output(2, past_value.axes, past_value.rank);
    // They must be the loop's own memory, whose rows cache_rows refers to.
    require(a.keys == past_key.data && a.values == past_value.data, "present and past are different memory");
    check_rows(a);
    set_rotation(a, run.input(kCos), run.input(kSin));
    set_bias(a, run.input(kBias));
    attend(run, a);
  }

  // Only the loop knows which rows exist, but no row may end after the cache's capacity.
  static void check_rows(const Attention& a) {
    const size_t of_row = std::max<size_t>(1, a.kv_heads * a.capacity);
    for (size_t row = 0; row < a.rows; ++row) {
      const CacheRow& where = a.cache_rows[row];
      require(where.prompt_start >= 0 && where.prompt_length >= 0 && where.past_start >= 0 && where.past_length >= 0,
              "cache_rows has a negative number");
      const size_t prompt = static_cast<size_t>(where.prompt_start) % of_row,
                   own = static_cast<size_t>(where.past_start) % of_row;
      require(prompt + static_cast<size_t>(where.prompt_length) <= a.capacity &&
                  own + static_cast<size_t>(where.past_length) + a.length <= a.capacity,
              "cache_rows points outside the cache");
    }
  }

  static void set_rotation(Attention& a, const TensorView& cos, const TensorView& sin) {
    if (!cos && !sin) return;
    require(cos.rank == 2 && sin.rank == 2 && std::equal(cos.axes, cos.axes + 2, sin.axes) &&
                2 * cos.size(1) <= a.width && a.max_visible() <= cos.size(0),
            "the rotation tables are too short or too wide");
    a.rotary_dims = 2 * cos.size(1);
    a.cos = cos.as<float>();
    a.sin = sin.as<float>();
  }

  static void set_bias(Attention& a, const TensorView& bias) {
    if (!bias) return;
    require(bias.rank == 4 && (bias.size(0) == 1 || bias.size(0) == a.rows) &&
                (bias.size(1) == 1 || bias.size(1) == a.heads) && bias.size(2) == a.length &&
                a.max_visible() <= bias.size(3),
            "attention_bias has the wrong shape");
    const size_t of_head = a.length * bias.size(3);
    a.bias = bias.as<float>();
    a.bias_strides = {bias.size(0) == 1 ? 0 : bias.size(1) * of_head, bias.size(3), bias.size(1) == 1 ? 0 : of_head};
  }
};

struct CrossAttentionOp final : Operator {
  enum Input : size_t { kQuery, kKey, kValue, kBias, kRows };
  static constexpr const char* kName = kCrossAttention;
  static constexpr DType kInputs[] = {DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kFloat32,
                                      DType::kInt32};
  static constexpr size_t kOutputs = 1;

  explicit CrossAttentionOp(const OperatorAttributes&) {}

  void compute(OperatorRun& run) const override {
    const TensorView query = run.input(kQuery), key = run.input(kKey), value = run.input(kValue);
    const TensorView bias = run.input(kBias), rows = run.input(kRows);
    require(query.rank == 4 && key.rank == 4 && value.rank == 4 && std::equal(key.axes, key.axes + 4, value.axes) &&
                key.size(1) == query.size(1) && key.size(3) == query.size(3) && key.size(2) > 0 &&
                key.size(2) <= INT32_MAX && key.size(3) > 0 && key.size(3) <= kMaxWidth &&
                key.size(3) % Attention::kWidthMultiple == 0,
            "query, key and value of the encoder do not fit");
    require(bias.rank == 4 && bias.size(0) == query.size(0) && bias.size(1) == 1 && bias.size(2) == 1 &&
                has_axes(rows, {query.size(0), 2}),
            "the encoder's mask or encoder_rows does not fit");
    Attention a = {};
    a.rows = query.size(0);
    a.heads = a.kv_heads = query.size(1);
    a.length = query.size(2);
    a.width = query.size(3);
    a.query = query.as<float>();
    a.query_strides = a.out_strides = {a.heads * a.length * a.width, a.width, a.length * a.width};
    a.keys = key.as<float>();
    a.values = value.as<float>();
    a.capacity = key.size(2);
    a.scale = 1;
    a.bias = bias.as<float>();
    a.bias_strides = {bias.size(3), 0, 0};
    a.out = run.output(0, query.axes, query.rank);
    thread_local Buffer memory;
    CacheRow* where = memory.get<CacheRow>(std::max<size_t>(1, a.rows));
    const size_t of_row = std::max<size_t>(1, a.heads * a.capacity);
    for (size_t row = 0; row < a.rows; ++row) {
      const int32_t start = rows.as<int32_t>()[2 * row], length = rows.as<int32_t>()[2 * row + 1];
      where[row] = {start, length, 0, 0};
      require(start >= 0 && length > 0 && static_cast<size_t>(length) <= bias.size(3) &&
                  static_cast<size_t>(start) % of_row + static_cast<size_t>(length) <= a.capacity,
              "encoder_rows points outside the encoder's output");
    }
    a.cache_rows = where;
    attend(run, a);
  }
};

struct EncoderAttentionOp final : Operator {
  static constexpr const char* kName = kEncoderAttention;
  static constexpr DType kInputs[] = {DType::kFloat32};
  static constexpr size_t kOutputs = 1;
  int64_t num_images;  // -1: any number
  size_t positions, heads, width;
  float scale;

  explicit EncoderAttentionOp(const OperatorAttributes& info)
      : num_images(info.integer("images")),
        positions(info.size("positions", kMaxPositions)),
        heads(info.size("num_heads", kMaxHeads)),
        width(info.size("width", kMaxWidth)),
        scale(info.number("scale")) {}

  void compute(OperatorRun& run) const override {
    const TensorView qkv = run.input(0);
    const size_t of_position = heads * width;
    require(qkv.rank == 3 && qkv.size(2) == 3 * of_position, "query, key and value have the wrong width");
    require(qkv.size(0) * qkv.size(1) % positions == 0, "positions are not a multiple of an image's");
    const size_t images = qkv.size(0) * qkv.size(1) / positions;
    require(num_images == -1 || static_cast<size_t>(num_images) == images, "the number of images is wrong");
    EncoderAttention a = {positions, heads, width, qkv.as<float>(), scale, nullptr};
    const int64_t out_axes[] = {static_cast<int64_t>(images), static_cast<int64_t>(positions),
                                static_cast<int64_t>(of_position)};
    a.out = run.output(0, out_axes, 3);
    const EncoderAttentionKernel* kernel = encoder_attention_kernel();
    parallel_for(run, images * heads, 1, [&](size_t part, size_t) {
      thread_local Buffer scratch;
      EncoderAttention of_image = a;
      of_image.qkv += part / heads * a.positions * 3 * of_position;
      of_image.out += part / heads * a.positions * of_position;
      kernel->attend(of_image, part % heads, scratch.get<uint8_t>(kernel->scratch_size(a)));
    });
  }
};

}  // namespace

std::vector<OperatorType> attention_types() {
  return {operator_type<AttentionOp>(), operator_type<CrossAttentionOp>(), operator_type<EncoderAttentionOp>()};
}

}  // namespace blip2rt
