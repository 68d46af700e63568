// A loaded graph: its inputs and outputs, and ways to run it. It keeps no state of a call, so any number of threads may
// share a Session. A runtime opens and runs it.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

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
  void run() {
    check_process(process_);
    execute();
  }

 private:
  virtual void execute() = 0;

  const int process_ = process_id();
};

// What a runtime makes of a graph.
class RuntimeGraph {
 public:
  virtual ~RuntimeGraph() = default;
  virtual std::vector<OwnedTensor> run(const NamedTensors& inputs, const std::vector<const char*>& outputs) const = 0;
  virtual std::unique_ptr<Binding> bind() const = 0;

  std::vector<Port> inputs, outputs;
};

// A graph that was read, checked and rewritten.
struct GraphSource {
  const std::string& path;
  std::string bytes;  // as in the file
  RewrittenGraph rewritten;
  Weights& weights;  // which outlive what the runtime makes
  int threads;       // 0: the runtime's default
};

// Opens a graph with a runtime. Throws std::runtime_error.
using OpenGraph = std::unique_ptr<RuntimeGraph> (*)(GraphSource source);
std::unique_ptr<RuntimeGraph> open_with_onnxruntime(GraphSource source);

class Session {
 public:
  // Loads a graph. threads 0: one per physical core. Throws GraphError, see read_graph.
  explicit Session(const std::string& graph_path, int threads, CustomOps ops = {}, const AllowedFiles& files = {},
                   bool trusted = false, OpenGraph open = open_with_onnxruntime);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  const std::vector<Port>& inputs() const { return graph_->inputs; }
  const std::vector<Port>& outputs() const { return graph_->outputs; }
  const Port* find_input(const std::string& name) const;
  const Port* find_output(const std::string& name) const;

  // Runs the graph. The runtime allocates the outputs.
  std::vector<OwnedTensor> run(const NamedTensors& inputs, const std::vector<const char*>& outputs) const;

  std::unique_ptr<Binding> bind() const;

  const std::string& path() const { return path_; }

  void check_process() const { blip2rt::check_process(process_); }

  // Takes the weights out of the process's memory until the next run reads them.
  void release_weights() const { weights_.release(); }

  // Returns whether only the loop may run the graph: it accesses rows outside the tensors' shapes.
  bool is_loop_only() const;

  // The custom kernels that the graph uses, such as "int4 avx512".
  const std::vector<std::string>& custom_kernels() const { return custom_kernels_; }

 private:
  std::string path_;
  int process_;
  Weights weights_;
  std::vector<std::string> custom_kernels_;
  std::unique_ptr<RuntimeGraph> graph_;
};

}  // namespace blip2rt
