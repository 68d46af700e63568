"""int8 of fixed ranges: weights and activations of products on grids written into the graph as QuantizeLinear and
DequantizeLinear (QDQ).

MatMul with a constant (K,N): the weight is int8 with a scale for each column, its other operand uint8 with one scale
and zero point from its range. ONNX Runtime makes one integer product of the four nodes when it loads the graph. Tables
of Gather are int8w. Knows graphs, nothing about models; ranges come from export.checks.ranges.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from ..graphs import trace
from . import smooth, weights
from .codes import channel_codes
from .weights import Encode, Keep, Progress, Range, Ranges

_STEPS = 255  # of uint8


def operands(model: ir.Model) -> Iterator[str]:
    """The values that `apply` needs the ranges of."""
    for node in weights.matrices(model, "MatMul"):
        assert node.inputs[0] is not None and node.inputs[0].name is not None
        yield node.inputs[0].name


def apply(model: ir.Model, ranges: Ranges, block: int, keep: Keep, progress: Progress, encode: Encode) -> None:
    """Quantize every product and every table, in place; of products that are not worth it (see smooth.py), or whose
    operand has no range, only the weights are 8-bit."""
    work = weights.matrices(model, "MatMul")
    ranges = smooth.apply(model, work, ranges)
    grids: dict[ir.Value, ir.Value] = {}
    for done, node in enumerate(work):
        operand, weight = node.inputs
        assert operand is not None and weight is not None
        if operand.name not in ranges:
            weights.quantize_matmul(model, node, 8, block, keep, encode)
            continue
        if operand not in grids:
            grids[operand] = _activation(model, node, operand, ranges[str(operand.name)])
        if weight not in grids:
            grids[weight] = _weight(model, node, weight, keep)
        node.replace_input_with(0, grids[operand])
        node.replace_input_with(1, grids[weight])
        progress(done + 1, len(work))
    weights.quantize_tables(model, 8, block, keep, encode)
    trace.drop_unused(model)


def _activation(model: ir.Model, before: ir.Node, value: ir.Value, seen: Range) -> ir.Value:
    step = np.array((seen.high - seen.low) / _STEPS or 1.0, np.float32)
    zero = np.array(np.clip(np.rint(-seen.low / step), 0, _STEPS), np.uint8)
    constants = [_constant(model, f"{value.name}.{name}", array) for name, array in (("scale", step), ("zero", zero))]
    codes = ir.node("QuantizeLinear", [value, *constants], name=f"{value.name}.quantize")
    return _insert(model, before, codes, ir.node("DequantizeLinear", [codes.outputs[0], *constants],
                                                 name=f"{value.name}.grid"))  # fmt: skip


def _weight(model: ir.Model, before: ir.Node, value: ir.Value, keep: Keep) -> ir.Value:
    tensor = trace.constant(value)
    assert tensor is not None
    codes, scales = channel_codes(np.asarray(tensor.numpy()), 1, np.dtype(np.float32))
    arrays = {"codes": codes, "scales": scales, "zeros": np.zeros(scales.shape, np.int8)}
    inputs = [_constant(model, f"{value.name}.{name}", array, keep) for name, array in arrays.items()]
    return _insert(model, before, ir.node("DequantizeLinear", inputs, {"axis": 1}, name=f"{value.name}.grid"))


def _insert(model: ir.Model, before: ir.Node, *nodes: ir.Node) -> ir.Value:
    """The result of the last of `nodes`, which follow each other."""
    for node in nodes:
        node.outputs[0].name = node.name
        model.graph.insert_before(before, node)
    return nodes[-1].outputs[0]


def _constant(model: ir.Model, name: str, array: np.ndarray, keep: Keep = weights.in_memory) -> ir.Value:
    return trace.add_initializer(model, name, keep(ir.tensor(np.asarray(array), name=name)))
