// Operators that compute each element by itself.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "executor/broadcast.h"
#include "executor/operators.h"
#include "executor/vectors.h"

namespace blip2rt {
namespace {

TensorView of_type(TensorView shape, DType dtype) {
  shape.dtype = dtype;
  return shape;
}

template <Unary kKind>
Compute unary(const Node&) {
  return [](NodeRun& run) {
    constexpr size_t kPart = 16 * 1024;
    const TensorView x = run.floats(0);
    const float* from = x.as<float>();
    float* to = run.output_over(0, x).as<float>();
    parallel_for(run, x.count(), kPart, [&](size_t first, size_t last) {
      vector_loops().unary(kKind, from + first, last - first, to + first);
    });
  };
}

// Functions of a few elements in every graph, which need no vector loop.
template <float (*kFunction)(float)>
Compute scalar(const Node&) {
  return [](NodeRun& run) {
    const TensorView x = run.floats(0);
    const float* from = x.as<float>();
    std::transform(from, from + x.count(), run.output_over(0, x).as<float>(), kFunction);
  };
}

float cosine(float x) { return std::cos(x); }
float sine(float x) { return std::sin(x); }
float round_down(float x) { return std::floor(x); }
float logarithm(float x) { return std::log(x); }
float reciprocal(float x) { return 1 / x; }
float softplus(float x) { return std::max(x, 0.0f) + std::log1p(std::exp(-std::abs(x))); }

Compute gelu(const Node& node) {
  const auto form = node.texts.find("approximate");
  return form != node.texts.end() && form->second == "tanh" ? unary<Unary::kGeluTanh>(node) : unary<Unary::kGelu>(node);
}

// Computes out[i] = apply(a[i], b[i]) for operands of one type.
template <class In, class Out, class F>
void combine(NodeRun& run, const F& apply, DType made) {
  const std::array<TensorView, 2> operands = {run.input(0), run.input(1)};
  const Broadcast loops(operands);
  const size_t a_step = loops.step(0), b_step = loops.step(1);
  const In *a = operands[0].as<In>(), *b = operands[1].as<In>();
  Out* out = run.output(0, of_type(loops.shape, made)).template as<Out>();
  each_run(run, loops, [&](size_t to, size_t count, const auto& from) {
    for (size_t i = 0; i < count; ++i) out[to + i] = apply(a[from[0] + i * a_step], b[from[1] + i * b_step]);
  });
}

void combine_floats(NodeRun& run, Binary kind) {
  const std::array<TensorView, 2> operands = {run.floats(0), run.floats(1)};
  const Broadcast loops(operands);
  const float *a = operands[0].as<float>(), *b = operands[1].as<float>();
  const TensorView shape = of_type(loops.shape, DType::kFloat32);
  const bool first = operands[0].count() == shape.count(), second = operands[1].count() == shape.count();
  float* out = (first    ? run.output_over(0, shape)
                : second ? run.output_over(1, shape)
                         : run.output(0, shape))
                   .as<float>();
  each_run(run, loops, [&](size_t to, size_t count, const auto& from) {
    vector_loops().binary(kind, a + from[0], loops.step(0), b + from[1], loops.step(1), count, out + to);
  });
}

// Integers wrap around, as in ONNX Runtime; a division by zero is an error.
template <class T>
T combine_integers(Binary kind, T a, T b) {
  using Bits = std::make_unsigned_t<T>;
  const auto x = static_cast<Bits>(a), y = static_cast<Bits>(b);
  switch (kind) {
    case Binary::kAdd: return static_cast<T>(x + y);
    case Binary::kSub: return static_cast<T>(x - y);
    case Binary::kMul: return static_cast<T>(x * y);
    case Binary::kDiv:
      require(b != 0 && !(a == std::numeric_limits<T>::min() && b == -1), "integers are divided by 0 or -1");
      return a / b;
    case Binary::kMin: return std::min(a, b);
    case Binary::kMax: return std::max(a, b);
  }
  return 0;
}

template <Binary kKind>
Compute binary(const Node&) {
  return [](NodeRun& run) {
    const DType dtype = run.input(0).dtype;
    (void)run.input(1, dtype);
    if (dtype == DType::kFloat32) return combine_floats(run, kKind);
    if (dtype == DType::kInt64) {
      return combine<int64_t, int64_t>(run, [](int64_t a, int64_t b) { return combine_integers(kKind, a, b); }, dtype);
    }
    require(dtype == DType::kInt32, "an input has a type that the executor does not support here");
    combine<int32_t, int32_t>(run, [](int32_t a, int32_t b) { return combine_integers(kKind, a, b); }, dtype);
  };
}

Compute power(const Node&) {
  return [](NodeRun& run) {
    const TensorView x = run.floats(0), exponent = run.floats(1);
    if (exponent.count() == 1 && exponent.rank <= x.rank && *exponent.as<float>() == 2) {
      const float* from = x.as<float>();
      float* to = run.output_over(0, x).as<float>();
      return vector_loops().binary(Binary::kMul, from, 1, from, 1, x.count(), to);
    }
    combine<float, float>(run, [](float a, float b) { return std::pow(a, b); }, DType::kFloat32);
  };
}

enum class Relation { kEqual, kGreater, kGreaterOrEqual, kLess, kLessOrEqual };

template <class T>
bool relates(Relation relation, T a, T b) {
  switch (relation) {
    case Relation::kEqual: return a == b;
    case Relation::kGreater: return a > b;
    case Relation::kGreaterOrEqual: return a >= b;
    case Relation::kLess: return a < b;
    case Relation::kLessOrEqual: return a <= b;
  }
  return false;
}

template <Relation kRelation>
Compute compare(const Node&) {
  return [](NodeRun& run) {
    const DType dtype = run.input(0).dtype;
    (void)run.input(1, dtype);
    const auto test = [](auto a, auto b) { return relates(kRelation, a, b); };
    switch (dtype) {
      case DType::kFloat32: return combine<float, bool>(run, test, DType::kBool);
      case DType::kInt64: return combine<int64_t, bool>(run, test, DType::kBool);
      case DType::kInt32: return combine<int32_t, bool>(run, test, DType::kBool);
      case DType::kBool: return combine<uint8_t, bool>(run, test, DType::kBool);
      default: throw std::runtime_error("an input has a type that the executor does not support here");
    }
  };
}

template <bool kIsAnd>
Compute logic(const Node&) {
  return [](NodeRun& run) {
    (void)run.input(0, DType::kBool);
    (void)run.input(1, DType::kBool);
    const auto join = [](uint8_t a, uint8_t b) { return kIsAnd ? a != 0 && b != 0 : a != 0 || b != 0; };
    combine<uint8_t, bool>(run, join, DType::kBool);
  };
}

Compute negation(const Node&) {
  return [](NodeRun& run) {
    const TensorView x = run.input(0, DType::kBool);
    bool* out = run.output(0, x).as<bool>();
    for (size_t i = 0; i < x.count(); ++i) out[i] = x.as<uint8_t>()[i] == 0;
  };
}

template <class T>
void clip(NodeRun& run, DType dtype) {
  const TensorView x = run.input(0, dtype);
  T least = std::numeric_limits<T>::lowest(), most = std::numeric_limits<T>::max();
  if constexpr (std::is_floating_point_v<T>) most = std::numeric_limits<T>::infinity(), least = -most;
  for (const size_t limit : {1, 2}) {
    if (!run.input(limit)) continue;
    const TensorView given = run.input(limit, dtype);
    require(given.count() == 1, "a limit is not a single number");
    (limit == 1 ? least : most) = *given.as<T>();
  }
  const T* from = x.as<T>();
  T* to = run.output_over(0, x).as<T>();
  for (size_t i = 0; i < x.count(); ++i) to[i] = std::min(most, from[i] < least ? least : from[i]);
}

Compute clip(const Node&) {
  return [](NodeRun& run) {
    if (run.input(0).dtype == DType::kInt64) return clip<int64_t>(run, DType::kInt64);
    clip<float>(run, DType::kFloat32);
  };
}

}  // namespace

std::vector<OperatorKind> elementwise_kinds() {
  return {
      {"", "Abs", unary<Unary::kAbs>},
      {"", "Add", binary<Binary::kAdd>},
      {"", "And", logic<true>},
      {"", "Clip", clip},
      {"", "Cos", scalar<cosine>},
      {"", "Div", binary<Binary::kDiv>},
      {"", "Equal", compare<Relation::kEqual>},
      {"", "Erf", unary<Unary::kErf>},
      {"", "Exp", unary<Unary::kExp>},
      {"", "Floor", scalar<round_down>},
      {"", "Gelu", gelu},
      {"", "Greater", compare<Relation::kGreater>},
      {"", "GreaterOrEqual", compare<Relation::kGreaterOrEqual>},
      {"", "Less", compare<Relation::kLess>},
      {"", "LessOrEqual", compare<Relation::kLessOrEqual>},
      {"", "Log", scalar<logarithm>},
      {"", "Max", binary<Binary::kMax>},
      {"", "Min", binary<Binary::kMin>},
      {"", "Mul", binary<Binary::kMul>},
      {"", "Neg", unary<Unary::kNeg>},
      {"", "Not", negation},
      {"", "Or", logic<false>},
      {"", "Pow", power},
      {"", "Reciprocal", scalar<reciprocal>},
      {"", "Relu", unary<Unary::kRelu>},
      {"", "Sigmoid", unary<Unary::kSigmoid>},
      {"", "Sin", scalar<sine>},
      {"", "Softplus", scalar<softplus>},
      {"", "Sqrt", unary<Unary::kSqrt>},
      {"", "Sub", binary<Binary::kSub>},
      {"", "Tanh", unary<Unary::kTanh>},
  };
}

}  // namespace blip2rt
