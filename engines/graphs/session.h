// A loaded graph: its inputs and outputs, and ways to run it. It keeps no state of a call, so any number of threads may
// share a Session.
#pragma once

#include <string>
#include <vector>

#include "graphs/graph_file.h"
#include "graphs/rewrite.h"
#include "ort/ort_api.h"

namespace blip2rt {

struct Port {
  std::string name;
  TensorInfo tensor;
};

class Session {
 public:
  // Loads a graph. intra_op_threads 0: ONNX Runtime's default, one per physical core. Throws GraphError, see
  // read_graph.
  explicit Session(const std::string& graph_path, int intra_op_threads, CustomOps ops = {},
                   const AllowedFiles& files = {}, bool trusted = false);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  const std::vector<Port>& inputs() const { return inputs_; }
  const std::vector<Port>& outputs() const { return outputs_; }
  const Port* find_input(const std::string& name) const;
  const Port* find_output(const std::string& name) const;

  // Runs the graph. ONNX Runtime allocates the outputs.
  std::vector<Value> run(const std::vector<const char*>& input_names, const std::vector<const OrtValue*>& inputs,
                         const std::vector<const char*>& output_names) const;

  const std::string& path() const { return path_; }

  // Throws if the process was forked after the session was loaded: its threads do not exist in the child.
  void check_process() const;

  // Takes the weights out of the process's memory until the next run reads them.
  void release_weights() const { weights_.release(); }

  // Returns whether only the loop may run the graph: it accesses rows outside the tensors' shapes.
  bool is_loop_only() const;

  // The custom kernels that the graph uses, such as "int4 avx512".
  const std::vector<std::string>& custom_kernels() const { return custom_kernels_; }

 private:
  friend class Binding;

  std::string path_;
  int process_;
  Weights weights_;
  std::vector<std::string> custom_kernels_;
  OrtSession* session_ = nullptr;
  std::vector<Port> inputs_;
  std::vector<Port> outputs_;
};

// Binds inputs and outputs to the caller's memory. Running again reuses the buffers and allocates nothing on our side.
class Binding {
 public:
  explicit Binding(const Session& session);
  void input(const char* name, const Value& value);
  void output(const char* name, const Value& value);
  void run();

 private:
  const Session& owner_;
  OrtSession* session_;
  IoBinding binding_;
};

}  // namespace blip2rt
