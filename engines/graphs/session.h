// A loaded graph: its inputs and outputs, and ways to run it. It keeps no state of a call, so any number of threads may
// share a Session. A runtime opens and runs it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/memory.h"
#include "base/system.h"
#include "base/tensor.h"
#include "graphs/graph_file.h"
#include "graphs/rewrite.h"

namespace blip2rt {

struct Port {
  std::string name;
  TensorInfo tensor;
};

// Tensors by name, which borrow names and memory.
using NamedTensors = std::vector<std::pair<const char*, TensorView>>;

// A tensor that a run allocated.
struct OwnedTensor {
  TensorView view;
  std::shared_ptr<void> memory;
};

// Throws if the process was forked after `process` loaded a session, whose threads do not exist in the child.
void check_process(int process);

// Binds inputs and outputs to the caller's memory. Running again reuses the buffers and allocates nothing on our side.
class Binding {
 public:
  virtual ~Binding() = default;
  virtual void input(const char* name, const TensorView& tensor) = 0;
  virtual void output(const char* name, const TensorView& tensor) = 0;
  // Throws Error if an output is not of its memory's shape.
  void run();

 private:
  friend class Session;
  virtual void execute() = 0;

  const int process_ = process_id();
  const std::string* path_ = nullptr;  // of the graph
};

// What the executor says of an output that does not fit the caller's memory.
inline constexpr const char* kWrongOutput = "an output has another shape than the caller's memory";

// What a runtime makes of a graph.
class RuntimeGraph {
 public:
  virtual ~RuntimeGraph() = default;
  virtual std::vector<OwnedTensor> run(const NamedTensors& inputs, const std::vector<const char*>& outputs) const = 0;
  virtual std::unique_ptr<Binding> bind() const = 0;
  // The memory of caches that it reads and writes.
  virtual Memory& memory() const { return host_memory(); }

  std::vector<Port> inputs, outputs;
  int max_rows = 0;  // of a run; 0: any number
};

// A graph that was read, checked and rewritten.
struct GraphSource {
  const std::string& path;
  std::string bytes;  // as in the file
  RewrittenGraph rewritten;
  Weights& weights;                      // which outlive what the runtime makes
  int threads;                           // 0: the runtime's default
  double run_timeout = 0;                // seconds that opening, or one run, may take; 0: any
  uint64_t folding_budget = UINT64_MAX;  // bytes of constants that opening may compute from others

  const std::string& model() const { return rewritten.bytes.empty() ? bytes : rewritten.bytes; }
};

// Opens a graph with a runtime. Throws std::runtime_error.
using OpenGraph = std::unique_ptr<RuntimeGraph> (*)(GraphSource source);
std::unique_ptr<RuntimeGraph> open_with_onnxruntime(GraphSource source);

// What a bundle promises of a graph's outputs, which are float32: their shapes, -1 for an axis of any size from 1 up.
// Axis 0 counts the batch, as in every input.
using OutputShapes = std::map<std::string, std::vector<int64_t>>;

class Session {
 public:
  // Loads a graph. threads 0: one per physical core. run_timeout: seconds that a run may take; 0 chooses by the size of
  // a graph that is not trusted. Throws GraphError, see read_graph.
  explicit Session(const std::string& graph_path, int threads, CustomOps ops = {}, const AllowedFiles& files = {},
                   bool trusted = false, OpenGraph open = open_with_onnxruntime, OutputShapes shapes = {},
                   double run_timeout = 0);
  // Takes a graph that an engine outside the core has opened.
  Session(std::string name, std::unique_ptr<RuntimeGraph> graph, OutputShapes shapes = {});
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  const std::vector<Port>& inputs() const { return graph_->inputs; }
  const std::vector<Port>& outputs() const { return graph_->outputs; }
  const Port* find_input(const std::string& name) const;
  const Port* find_output(const std::string& name) const;

  // Runs the graph. The runtime allocates the outputs. Throws Error if one is not what the bundle promises.
  std::vector<OwnedTensor> run(const NamedTensors& inputs, const std::vector<const char*>& outputs) const;

  std::unique_ptr<Binding> bind() const;

  const std::string& path() const { return path_; }
  Memory& memory() const { return graph_->memory(); }
  int max_rows() const { return graph_->max_rows; }

  void check_process() const { blip2rt::check_process(process_); }

  // Takes the weights out of the process's memory until the next run reads them.
  void release_weights() const { weights_.release(); }

  // Returns whether only the loop may run the graph: it accesses rows outside the tensors' shapes.
  bool is_loop_only() const;

  // The custom kernels that the graph uses, such as "int4 avx512".
  const std::vector<std::string>& custom_kernels() const { return custom_kernels_; }

 private:
  void check_output(const char* name, const TensorView& tensor, int64_t batch) const;

  std::string path_;
  int process_;
  OutputShapes shapes_;
  Weights weights_;
  std::vector<std::string> custom_kernels_;
  std::unique_ptr<RuntimeGraph> graph_;
};

}  // namespace blip2rt
