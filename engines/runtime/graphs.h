// A bundle's graphs, each opened at its first use. Any thread may use them.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "bundle/bundle.h"
#include "graphs/session.h"
#include "loop/generator.h"

namespace blip2rt {

struct Tensor {
  std::vector<int64_t> shape;
  std::vector<float> values;

  size_t rows() const { return shape.empty() ? 0 : static_cast<size_t>(shape[0]); }
  size_t row_size() const { return rows() == 0 ? 0 : values.size() / rows(); }
  const float* row(size_t number) const { return values.data() + number * row_size(); }
};

// A tensor that a graph reads: borrows its values.
struct Feed {
  Feed(const char* name, const TensorView& view) : name(name), view(view) {}
  Feed(const char* name, const Tensor& tensor)
      : name(name), view(const_cast<float*>(tensor.values.data()), tensor.shape) {}
  Feed(const char* name, const std::vector<int64_t>& ids, size_t rows = 1)  // (rows, length)
      : name(name),
        view(const_cast<int64_t*>(ids.data()), {static_cast<int64_t>(rows), static_cast<int64_t>(ids.size() / rows)},
             DType::kInt64) {}
  const char* name;
  TensorView view;
};

// Runs what generates, with the core's errors as Error.
template <class Work>
auto named_failure(Work work) {
  try {
    return work();
  } catch (const Error&) {
    throw;
  } catch (const std::runtime_error& error) {
    throw Error(ErrorKind::kBackend, std::string("generation failed: ") + error.what());
  }
}

class Graphs {
 public:
  virtual ~Graphs() = default;
  virtual std::shared_ptr<const Session> session(const std::string& component) = 0;

  // The language model's graphs, without state between calls.
  virtual std::shared_ptr<const Generator> generator() = 0;

  // Called between runs; what it throws ends the call.
  virtual void check_signals() {}

  // Runs a graph and returns one output. Throws Error.
  virtual Tensor run(const std::string& component, const char* output, const std::vector<Feed>& feeds);
};

// How graphs are opened and run.
struct GraphRules {
  int threads = 0;         // 0: one for each physical core
  bool trusted = false;    // any operator is allowed
  double run_timeout = 0;  // seconds of one run; 0: by the size of the graph
};

class BundleGraphs final : public Graphs {
 public:
  // `bundle` must outlive the graphs.
  // core: the executor runs them, not ONNX Runtime.
  BundleGraphs(const Bundle& bundle, GraphRules rules, bool core) : bundle_(bundle), rules_(rules), core_(core) {}

  std::shared_ptr<const Session> session(const std::string& component) override;
  std::shared_ptr<const Generator> generator() override;

  // Takes the weights of a graph, if it is open, out of the process's memory until its next run.
  void release_weights(const std::string& component);

 private:
  const std::shared_ptr<const Session>& open(const std::string& component);

  const Bundle& bundle_;
  const GraphRules rules_;
  const bool core_;
  std::mutex mutex_;  // while a graph is opened
  std::map<std::string, std::shared_ptr<const Session>> sessions_;
  std::shared_ptr<const Generator> generator_;
};

}  // namespace blip2rt
