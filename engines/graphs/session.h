// One loaded graph: its inputs and outputs, and ways to run it. Holds no state of a call: one Session serves any number
// of threads. Knows tensors by name; not what they mean.
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
  // Loads a graph. intra_op_threads 0 leaves the number to ONNX Runtime: one a physical core. Throws GraphError where
  // the file asks for what it may not, see read_graph.
  explicit Session(const std::string& graph_path, int intra_op_threads, CustomOps ops = {},
                   const AllowedFiles& files = {});
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

  // Throws where the process was forked after the session was loaded: its threads are not in the child.
  void check_process() const;

  // Returns whether the loop alone may run the graph: it reads rows that lie behind what its tensors show.
  bool is_loop_only() const;

  // The kernels that run in place of ONNX Runtime's, such as "int4 avx512".
  const std::vector<std::string>& custom_kernels() const { return custom_kernels_; }

 private:
  friend class Binding;

  std::string path_;
  int process_;
  std::vector<std::string> custom_kernels_;
  OrtSession* session_ = nullptr;
  std::vector<Port> inputs_;
  std::vector<Port> outputs_;
};

// Binds inputs and outputs to the caller's memory. Running again reads and writes the same buffers, and allocates
// nothing on our side.
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
