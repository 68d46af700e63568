// A planned graph: its values are numbered, its operators are functions in the order in which they run, and each step
// knows which values end with it. Shapes are those of a run: an operator computes its outputs' shapes and asks for
// their memory.
//
//     file -> plan.cpp, fuse.cpp -> PlannedGraph -> run.cpp -> outputs; operators.h: the operators; core_graph.cpp: for
//     Session
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "base/deadline.h"
#include "base/tensor.h"
#include "executor/vectors.h"
#include "graphs/session.h"
#include "ops/operator.h"

namespace blip2rt {

class NodeRun;

// Runs an operator with its attributes. It keeps no state, so any number of threads may run it.
using Compute = std::function<void(NodeRun& run)>;

constexpr size_t kNoValue = SIZE_MAX;  // of an optional input or output that is missing

// What follows a product, element by element: activation(x + bias) * factor + residual. Operands are values; factor and
// residual have the shape of the product.
struct Ending {
  size_t width = 0;  // of the product; 0: nothing follows
  Activation activation = Activation::kNone;
  float beta = 1;
  size_t bias = kNoValue, factor = kNoValue, residual = kNoValue;
};

struct Step {
  std::string title;  // of the node, for messages
  Compute compute;
  std::vector<size_t> inputs, outputs;  // numbers of values
  std::vector<size_t> last;             // values that no later step reads
  Ending ending;
  size_t fused = kNoValue, replaced = 1;  // PlannedGraph::fused: does the work of as many steps from this one on
};

struct PlannedGraph {
  std::vector<Port> inputs, outputs;
  std::vector<size_t> input_values, output_values;
  std::vector<TensorView> constants;  // by value; without a type for values that a run computes
  std::vector<Step> steps, fused;
  size_t threads = 1;
  double run_timeout = 0;          // seconds; 0: none
  std::deque<std::string> folded;  // memory of constants that were computed at load
};

// Throws std::runtime_error, in one line that names the operator, for what the executor cannot run, and RunTimeout. The
// source's weights must outlive the graph.
PlannedGraph plan_graph(const GraphSource& source);

// Returns whether this platform can address as many bytes, with axes of 0 counted as 1. If so, no product of some of
// the axes overflows.
bool fits_memory(const TensorView& shape);

// The values of one run. They are the caller's memory, constants or blocks of an arena.
struct Slot {
  TensorView view;
  struct Block* block = nullptr;  // of the arena; nullptr: other memory, which is not overwritten
};

// Runs a graph. `fed`: an input of each port. `bound`: of each output port, the caller's memory, or a view without
// type. Returns the outputs that are `wanted`, in memory of their own. Throws std::runtime_error, std::bad_alloc and
// RunTimeout.
std::vector<OwnedTensor> run_graph(const PlannedGraph& graph, const std::vector<TensorView>& fed,
                                   const std::vector<TensorView>& bound, const std::vector<bool>& wanted);

// The state of a run.
struct GraphRun {
  const PlannedGraph& graph;
  class Arena& arena;
  Deadline deadline;
  uint64_t budget = UINT64_MAX;     // bytes that outputs may still take
  std::vector<Slot> slots;          // by value
  std::vector<TensorView> targets;  // by value, memory of the caller that an output shall have; may be shorter
};

// Runs one step. Throws likewise.
void run_step(GraphRun& run, const Step& step);

}  // namespace blip2rt
