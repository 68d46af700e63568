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
  const TensorView& target = targets_[value];
  if (!target) return nullptr;
  require(target.dtype == shape.dtype && same_axes(target, shape), kWrongOutput);
  return &target;
}

TensorView NodeRun::output(size_t index, const TensorView& shape) {
  require(index < step_.outputs.size(), "the node lacks an output");
  check_size(shape);
  TensorView view = shape;
  require(step_.outputs[index] != kNoValue, "an output has no name");  // unused, but the operator writes it
  Slot& slot = slots_[step_.outputs[index]];
  if (const TensorView* target = target_of(index, shape)) {
    view.data = target->data;
  } else {
    slot.block = arena_.take(shape.bytes());
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
  Slot &from = slots_[value], &to = slots_[step_.outputs[0]];
  const bool ends = std::find(step_.last.begin(), step_.last.end(), value) != step_.last.end();
  const bool is_free = ends && from.block != nullptr && from.block->users == 1 && from.view.bytes() == shape.bytes();
  if (!is_free || targets_[step_.outputs[0]]) return output(0, shape);
  ++from.block->users;
  to = {shape, from.block};
  to.view.data = from.view.data;
  return to.view;
}

void NodeRun::share(size_t output, size_t input, const TensorView& shape) {
  const Slot& from = slots_[step_.inputs[input]];
  check_type(shape);
  require(fits_memory(shape) && shape.bytes() == from.view.bytes(), "the sizes do not fit");
  if (targets_[step_.outputs[output]]) {
    const TensorView to = this->output(output, shape);
    if (to.bytes() > 0) std::memmove(to.data, from.view.data, to.bytes());
    return;
  }
  Slot& to = slots_[step_.outputs[output]];
  if (from.block != nullptr) ++from.block->users;
  to = {shape, from.block};
  to.view.data = from.view.data;
}

void NodeRun::finish(size_t first, size_t last) {
  if (!finishes()) return;
  const Ending& ending = step_.ending;
  const TensorView& out = slots_[step_.outputs[0]].view;
  const auto at = [&](size_t value) { return value == kNoValue ? nullptr : slots_[value].view.as<float>() + first; };
  vector_loops().finish({ending.activation, ending.beta, at(ending.bias), at(ending.factor), at(ending.residual),
                         out.as<float>() + first, ending.width, out.count() / ending.width, last - first});
}

void run_step(const PlannedGraph& graph, const Step& step, std::vector<Slot>& slots, Arena& arena,
              const std::vector<TensorView>& targets) {
  try {
    NodeRun run(graph, step, slots, arena, targets);
    step.compute(run);
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(step.title + ": " + error.what());
  }
  for (const size_t value : step.last) let_go(slots[value], arena);
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
  std::vector<Slot> slots(graph.constants.size());
  std::vector<TensorView> targets(graph.constants.size());
  for (size_t i = 0; i < slots.size(); ++i) slots[i].view = graph.constants[i];
  for (size_t i = 0; i < fed.size(); ++i) slots[graph.input_values[i]].view = fed[i];
  for (size_t i = 0; i < bound.size(); ++i) targets[graph.output_values[i]] = bound[i];
  LeasedArena arena;
  for (size_t i = 0; i < graph.steps.size();) {
    const Step* step = &graph.steps[i];
    const bool fuses = step->fused != kNoValue && fits(graph.fused[step->fused], slots);
    i += fuses ? step->replaced : 1;
    run_step(graph, fuses ? graph.fused[step->fused] : *step, slots, *arena, targets);
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
