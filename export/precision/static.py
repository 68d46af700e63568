"""int8-static: scales of weights and activations are fixed and written as QuantizeLinear and DequantizeLinear.

MatMul with a constant (K,N): the weight is int8 with a scale for each column, the other operand uint8 with one scale
and zero point from its measured range. ONNX Runtime fuses the four nodes into one integer product when it loads the
graph. Embedding tables become int8w.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from ..graphs import trace
from . import smoothquant
from .activations import Range, Ranges
from .quantizer import Quantizer, channel_codes, matrices
from .weight_only import quantize_matmul, quantize_tables

_UINT8_MAX = 255


def operands(model: ir.Model) -> Iterator[str]:
    """Yield the names of the values whose ranges `apply` needs."""
    for node in matrices(model, "MatMul"):
        assert node.inputs[0] is not None and node.inputs[0].name is not None
        yield node.inputs[0].name


def apply(model: ir.Model, quantizer: Quantizer, ranges: Ranges) -> None:
    """Quantize every product and every table in place.

    A product with outliers (see smoothquant.py), or without a measured range, only gets 8-bit weights.
    """
    work = matrices(model, "MatMul")
    ranges = smoothquant.apply(model, work, ranges)
    grids: dict[ir.Value, ir.Value] = {}
    for done, node in enumerate(work):
        operand, weight = node.inputs
        assert operand is not None and weight is not None
        if operand.name not in ranges:
            quantize_matmul(model, node, 8, quantizer)
            continue
        if operand not in grids:
            grids[operand] = _activation(model, node, ranges[str(operand.name)], quantizer)
        if weight not in grids:
            grids[weight] = _weight(model, node, quantizer)
        node.replace_input_with(0, grids[operand])
        node.replace_input_with(1, grids[weight])
        quantizer.progress(done + 1, len(work))
    quantize_tables(model, 8, quantizer)
    trace.drop_unused(model)


def _activation(model: ir.Model, before: ir.Node, seen: Range, quantizer: Quantizer) -> ir.Value:
    """Quantize the operand of `before` to uint8 over the range `seen`."""
    value = before.inputs[0]
    assert value is not None
    step = np.array((seen.high - seen.low) / _UINT8_MAX or 1.0, np.float32)
    zero = np.array(np.clip(np.rint(-seen.low / step), 0, _UINT8_MAX), np.uint8)
    arrays: dict[str, np.ndarray] = {"scale": step, "zero": zero}
    constants = [quantizer.add(model, f"{value.name}.{name}", array) for name, array in arrays.items()]
    codes = ir.node("QuantizeLinear", [value, *constants], name=f"{value.name}.quantize")
    grid = ir.node("DequantizeLinear", [codes.outputs[0], *constants], name=f"{value.name}.grid")
    return _insert(model, before, codes, grid)


def _weight(model: ir.Model, before: ir.Node, quantizer: Quantizer) -> ir.Value:
    """Quantize the weight (K,N) of `before` to int8 with a scale for each column."""
    value = before.inputs[1]
    tensor = trace.constant(value)
    assert value is not None and tensor is not None
    codes, scales = channel_codes(np.asarray(tensor.numpy()), 1, np.dtype(np.float32))
    arrays = {"codes": codes, "scales": scales, "zeros": np.zeros(scales.shape, np.int8)}
    inputs = [quantizer.add(model, f"{value.name}.{name}", array) for name, array in arrays.items()]
    return _insert(model, before, ir.node("DequantizeLinear", inputs, {"axis": 1}, name=f"{value.name}.grid"))


def _insert(model: ir.Model, before: ir.Node, *nodes: ir.Node) -> ir.Value:
    """Insert a chain of nodes. Return the output of the last."""
    for node in nodes:
        node.outputs[0].name = node.name
        model.graph.insert_before(before, node)
    return nodes[-1].outputs[0]
