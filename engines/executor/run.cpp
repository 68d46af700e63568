// Runs the steps of a planned graph: gives each its inputs, memory for its outputs, and frees what no later one reads.
#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

#include "executor/node_run.h"

namespace blip2rt {
namespace {

bool same_axes(const TensorView& a, const TensorView& b) {
  return a.rank == b.rank && std::equal(a.axes, a.axes + a.rank, b.axes);
}

void check_type(const TensorView& shape) {
  require(element_size(shape.dtype) > 0, "the executor does not support the type of an output");
}

void check_size(const TensorView& shape) {
  check_type(shape);
  for (size_t i = 0; i < shape.rank; ++i) require(shape.axes[i] >= 0, "an output would have a negative size");
  if (!fits_memory(shape)) throw std::bad_alloc();
}

void let_go(Slot& slot, Arena& arena) {
  if (slot.block != nullptr && --slot.block->users == 0) arena.give_back(slot.block);
  slot.block = nullptr;
}

}  // namespace

bool fits_memory(const TensorView& shape) {
  constexpr uint64_t kMaxBytes = std::min<uint64_t>(uint64_t{1} << 34, PTRDIFF_MAX);  // more than any export needs
  uint64_t bytes = std::max<size_t>(1, element_size(shape.dtype));
  bool fits = true;
  for (size_t i = 0; i < shape.rank; ++i) {
    fits = fits && !__builtin_mul_overflow(bytes, std::max<int64_t>(1, shape.axes[i]), &bytes) && bytes <= kMaxBytes;
  }
  return fits;
}

std::vector<int64_t> NodeRun::list(size_t index) const {
  const TensorView view = input(index, DType::kInt64);
  require(view.rank <= 1 && view.count() <= 64, "a list of sizes or axes has the wrong shape");
  return {view.as<int64_t>(), view.as<int64_t>() + view.count()};
}

const TensorView* NodeRun::target_of(size_t output, const TensorView& shape) const {
  const size_t value = step_.outputs[output];
  if (value >= run_.targets.size() || !run_.targets[value]) return nullptr;
  const TensorView& target = run_.targets[value];
  require(target.dtype == shape.dtype && same_axes(target, shape), kWrongOutput);
  return &target;
}

TensorView NodeRun::output(size_t index, const TensorView& shape) {
  require(index < step_.outputs.size(), "the node lacks an output");
  check_size(shape);
  TensorView view = shape;
  require(step_.outputs[index] != kNoValue, "an output has no name");  // unused, but the operator writes it
  Slot& slot = run_.slots[step_.outputs[index]];
  if (const TensorView* target = target_of(index, shape)) {
    view.data = target->data;
  } else {
    require(shape.bytes() <= run_.budget, "its constants cost more memory than a graph of this size may take");
    if (run_.budget != UINT64_MAX) run_.budget -= shape.bytes();
    slot.block = run_.arena.take(shape.bytes());
    view.data = slot.block->data;
  }
  return slot.view = view;
}

float* NodeRun::output(size_t index, const int64_t* axes, size_t rank) {
  return output(index, TensorView(nullptr, DType::kFloat32, axes, rank)).as<float>();
}

TensorView NodeRun::output_over(size_t input, const TensorView& shape) {
  check_size(shape);
  const size_t value = step_.inputs[input];
  Slot &from = run_.slots[value], &to = run_.slots[step_.outputs[0]];
  const bool ends = std::find(step_.last.begin(), step_.last.end(), value) != step_.last.end();
  const bool is_free = ends && from.block != nullptr && from.block->users == 1 && from.view.bytes() == shape.bytes();
  if (!is_free || target_of(0, shape) != nullptr) return output(0, shape);
  ++from.block->users;
  to = {shape, from.block};
  to.view.data = from.view.data;
  return to.view;
}

void NodeRun::share(size_t output, size_t input, const TensorView& shape) {
  const Slot& from = run_.slots[step_.inputs[input]];
  check_type(shape);
  require(fits_memory(shape) && shape.bytes() == from.view.bytes(), "the sizes do not fit");
  if (target_of(output, shape) != nullptr) {
    const TensorView to = this->output(output, shape);
    if (to.bytes() > 0) std::memmove(to.data, from.view.data, to.bytes());
    return;
  }
  Slot& to = run_.slots[step_.outputs[output]];
  if (from.block != nullptr) ++from.block->users;
  to = {shape, from.block};
  to.view.data = from.view.data;
}

void NodeRun::run_parts(size_t parts, void (*work)(void* data, size_t part), void* data) {
  struct Part {
    const Deadline& deadline;
    void (*work)(void* data, size_t part);
    void* data;
  } timed{run_.deadline, work, data};
  run_on_threads(
      parts, run_.graph.threads,
      [](void* timed, size_t part) {
        const auto& self = *static_cast<Part*>(timed);
        if (!self.deadline.has_passed()) self.work(self.data, part);
      },
      &timed);
  run_.deadline.check();
}

void NodeRun::finish(size_t first, size_t last) {
  if (!finishes()) return;
  const Ending& ending = step_.ending;
  const TensorView& out = run_.slots[step_.outputs[0]].view;
  const auto at = [&](size_t value) {
    return value == kNoValue ? nullptr : run_.slots[value].view.as<float>() + first;
  };
  vector_loops().finish({ending.activation, ending.beta, at(ending.bias), at(ending.factor), at(ending.residual),
                         out.as<float>() + first, ending.width, out.count() / ending.width, last - first});
}

void run_step(GraphRun& run, const Step& step) {
  run.deadline.check();
  try {
    NodeRun node(run, step);
    step.compute(node);
  } catch (const RunTimeout&) {
    throw;
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(step.title + ": " + error.what());
  }
  for (const size_t value : step.last) let_go(run.slots[value], run.arena);
}

namespace {

// Returns whether the operands of a product's ending have the shape of the product.
bool fits(const Step& fused, const std::vector<Slot>& slots) {
  TensorView made = slots[fused.inputs[0]].view;
  if (made.rank == 0) return false;
  made.axes[made.rank - 1] = static_cast<int64_t>(fused.ending.width);
  for (const size_t value : {fused.ending.factor, fused.ending.residual}) {
    if (value == kNoValue) continue;
    if (slots[value].view.dtype != DType::kFloat32 || !same_axes(slots[value].view, made)) return false;
  }
  return true;
}

}  // namespace

std::vector<OwnedTensor> run_graph(const PlannedGraph& graph, const std::vector<TensorView>& fed,
                                   const std::vector<TensorView>& bound, const std::vector<bool>& wanted) {
  LeasedArena arena;
  GraphRun run{graph, *arena, Deadline(graph.run_timeout), UINT64_MAX, {}, {}};
  std::vector<Slot>& slots = run.slots;
  slots.resize(graph.constants.size());
  run.targets.resize(bound.empty() ? 0 : graph.constants.size());
  for (size_t i = 0; i < slots.size(); ++i) slots[i].view = graph.constants[i];
  for (size_t i = 0; i < fed.size(); ++i) slots[graph.input_values[i]].view = fed[i];
  for (size_t i = 0; i < bound.size(); ++i) run.targets[graph.output_values[i]] = bound[i];
  for (size_t i = 0; i < graph.steps.size();) {
    const Step* step = &graph.steps[i];
    const bool fuses = step->fused != kNoValue && fits(graph.fused[step->fused], slots);
    i += fuses ? step->replaced : 1;
    run_step(run, fuses ? graph.fused[step->fused] : *step);
  }
  for (size_t i = 0; i < bound.size(); ++i) {  // of an output that no step computes
    const TensorView& made = slots[graph.output_values[i]].view;
    if (!bound[i] || bound[i].data == made.data) continue;
    require(made.dtype == bound[i].dtype && same_axes(made, bound[i]), kWrongOutput);
    std::memcpy(bound[i].data, made.data, made.bytes());
  }
  std::vector<OwnedTensor> outputs;
  for (size_t i = 0; i < graph.output_values.size(); ++i) {
    if (!wanted[i]) continue;
    const TensorView& made = slots[graph.output_values[i]].view;
    OwnedTensor output{made, std::shared_ptr<void>(::operator new(std::max<size_t>(1, made.bytes())),
                                                   [](void* memory) { ::operator delete(memory); })};
    if (made.bytes() > 0) std::memcpy(output.memory.get(), made.data, made.bytes());
    output.view.data = output.memory.get();
    outputs.push_back(std::move(output));
  }
  return outputs;
}

}  // namespace blip2rt
