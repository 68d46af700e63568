// Computes the windows of Pillow's filters, chooses the kernel, and runs both passes.
#include "kernels/resize/resize.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "kernels/dispatch.h"

namespace blip2rt {

extern const ResizeKernel kResizePlain;
#if defined(__x86_64__)
extern const ResizeKernel kResizeAvx2;
#elif defined(__aarch64__)
extern const ResizeKernel kResizeNeon;
#endif

namespace {

constexpr double kPi = 3.14159265358979323846;

double sinc(double x) { return x == 0 ? 1 : std::sin(kPi * x) / (kPi * x); }

// A filter's weight at distance x from its centre, in inputs (in outputs when shrinking).
struct Filter {
  const char* name;
  double reach;  // beyond it, weights are 0
  double (*at)(double x);
};

constexpr Filter kFilters[] = {
    {"box", 0.5, [](double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }},
    {"bilinear", 1, [](double x) { return std::max(0.0, 1 - std::fabs(x)); }},
    {"hamming", 1,
     [](double x) {
       if (x == 0) return 1.0;  // 0.54F + 0.46F is not exactly 1
       return std::fabs(x) < 1 ? sinc(x) * (0.54F + 0.46F * std::cos(kPi * x)) : 0.0;
     }},
    {"bicubic", 2,
     [](double x) {
       constexpr double kSharpness = -0.5;  // the slope at 1
       x = std::fabs(x);
       if (x < 1) return ((kSharpness + 2) * x - (kSharpness + 3)) * x * x + 1;
       return x < 2 ? (((x - 5) * x + 8) * x - 4) * kSharpness : 0.0;
     }},
    {"lanczos", 3, [](double x) { return x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0.0; }},
};

const Filter& find_filter(const std::string& name) {
  for (const Filter& filter : kFilters) {
    if (name == filter.name) return filter;
  }
  throw std::invalid_argument("unknown filter " + name);
}

int32_t fixed_point(double weight) {
  return static_cast<int32_t>(weight * (1 << ResizeKernel::kFractionBits) + (weight < 0 ? -0.5 : 0.5));
}

// Computes the windows of an axis, each a multiple of `unit` inputs wide. Returns no windows if the axis has fewer
// inputs than that.
Windows make_windows(const Filter& filter, size_t inputs, size_t outputs, size_t unit) {
  const double scale = static_cast<double>(inputs) / static_cast<double>(outputs);
  const double stretch = std::max(scale, 1.0), squeeze = 1 / stretch, reach = filter.reach * stretch;
  struct Span {
    size_t first, end;
    double middle;
  };
  std::vector<Span> spans;
  Windows windows{0, {}, {}};
  for (size_t i = 0; i < outputs; ++i) {
    const double middle = (static_cast<double>(i) + 0.5) * scale;
    const auto first = static_cast<size_t>(std::max(middle - reach + 0.5, 0.0));
    const size_t end = std::min(static_cast<size_t>(middle + reach + 0.5), inputs);
    spans.push_back({first, end, middle});
    windows.taps = std::max(windows.taps, end - first);
  }
  windows.taps = (windows.taps + unit - 1) / unit * unit;
  if (windows.taps > inputs) return windows;

  windows.weights.resize(outputs * windows.taps);
  std::vector<double> weights;
  for (size_t i = 0; i < outputs; ++i) {
    const Span& span = spans[i];
    weights.clear();
    double sum = 0;
    for (size_t input = span.first; input < span.end; ++input) {
      weights.push_back(filter.at((static_cast<double>(input) - span.middle + 0.5) * squeeze));
      sum += weights.back();
    }
    windows.first.push_back(std::min(span.first, inputs - windows.taps));
    int32_t* to = &windows.weights[i * windows.taps + span.first - windows.first.back()];
    for (const double weight : weights) *to++ = fixed_point(sum == 0 ? weight : weight / sum);
  }
  return windows;
}

// Packs weights for the horizontal pass.
Windows pack_weights(const Windows& windows, const ResizeKernel& kernel) {
  Windows result{windows.taps, windows.first,
                 std::vector<int32_t>(windows.weights.size() / kernel.pixels * kernel.packed_weights)};
  int32_t* to = result.weights.data();
  for (size_t i = 0; i < windows.weights.size(); i += kernel.pixels, to += kernel.packed_weights) {
    kernel.pack(&windows.weights[i], to);
  }
  return result;
}

}  // namespace

const ResizeKernel* resize_kernel(const char* name) {
  static const KernelList<ResizeKernel> kernels = {
#if defined(__x86_64__)
      {may_use(Level::kAvx2), kResizeAvx2},
#elif defined(__aarch64__)
      {may_use(Level::kNeon), kResizeNeon},
#endif
      {true, kResizePlain},
  };
  return kernels.find(name);
}

Resize::Resize(const std::string& filter, Size from, Size to, const ResizeKernel& kernel)
    : from_(from), to_(to), kernel_(&kernel) {
  const Filter& weights = find_filter(filter);
  if (from.width == 0 || from.height == 0 || to.width == 0 || to.height == 0) {
    throw std::invalid_argument("a picture or its target has no pixels");
  }
  Windows horizontal = make_windows(weights, from.width, to.width, kernel.pixels);
  if (horizontal.first.empty()) {  // narrower than one read of the kernel
    kernel_ = &kResizePlain;
    horizontal = make_windows(weights, from.width, to.width, kernel_->pixels);
  }
  horizontal_ = pack_weights(horizontal, *kernel_);
  vertical_ = make_windows(weights, from.height, to.height, 1);
  constexpr size_t kUnit = ResizeKernel::kRowAlignment;
  stride_ = (4 * to.width + kUnit - 1) / kUnit * kUnit;
  intermediate_.resize(from.height * stride_);
}

void Resize::add(const uint8_t* rgbx, size_t rows) {
  if (rows > rows_left()) throw std::invalid_argument("more rows were added than the picture has");
  if (rows == 0) return;
  kernel_->horizontal(horizontal_.first.data(), horizontal_.weights.data(), to_.width, horizontal_.taps, rgbx,
                      row_bytes(), rows, &intermediate_[rows_ * stride_], stride_);
  rows_ += rows;
}

void Resize::write(uint8_t* rgb) const {
  if (rows_left() != 0) throw std::invalid_argument("not all rows of the picture were added");
  std::vector<uint8_t> row(stride_);
  for (size_t y = 0; y < to_.height; ++y) {
    kernel_->vertical(&vertical_.weights[y * vertical_.taps], vertical_.taps,
                      &intermediate_[vertical_.first[y] * stride_], stride_, row.data());
    for (size_t x = 0; x < to_.width; ++x) rgb = std::copy_n(&row[4 * x], 3, rgb);
  }
}

}  // namespace blip2rt
