"""SmoothQuant: move outliers of activations into the weights, and decide which products then suit int8.

Xiao et al. 2022, arXiv 2211.10438: x @ W = (x / s) @ (s[:, None] * W) for any scale s of each channel. In language
models some channels are a hundred times as large as others. One scale for all of x leaves the others almost no
resolution, while weights have a scale for each column.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir

from ..graphs import trace
from .activations import Range, Ranges

STRENGTH = 0.7  # share of the outliers that moves into the weights: s = max(x) ** 0.7 / max(W) ** 0.3
MAX_RANGE = 100.0  # widest range, in mean magnitudes, that leaves most values enough resolution


def apply(model: ir.Model, products: Iterable[ir.Node], ranges: Ranges) -> dict[str, Range]:
    """Scale the operands of `products` (MatMul or Conv with a constant) in place. Return the ranges of those for int8.

    An operand that would still have outliers stays unchanged and has no range.
    """
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in products:
        operand = node.inputs[0]
        if operand is not None and operand.name in ranges:
            readers.setdefault(operand, []).append(node)
    found: dict[str, Range] = {}
    for operand, nodes in readers.items():
        name, seen = str(operand.name), ranges[str(operand.name)]
        scales = _scales(seen, nodes) if nodes[0].op_type == "MatMul" else np.ones(1, np.float32)
        smoothed = seen.divide(scales)
        if smoothed.high - smoothed.low > MAX_RANGE * smoothed.mean:
            continue
        if nodes[0].op_type == "MatMul":
            name = _scale(model, operand, nodes, scales)
        found[name] = smoothed
    trace.drop_unused(model)
    return found


def _scales(seen: Range, nodes: list[ir.Node]) -> np.ndarray:
    """Choose scales (K) for the channels of the shared operand of `nodes`; 1 if it or the weights are 0."""
    matrices = [trace.constant(node.inputs[1]) for node in nodes]
    weights = np.max([np.abs(matrix.numpy()).max(1) for matrix in matrices if matrix is not None], 0)
    values = np.broadcast_to(np.maximum(-seen.lows, seen.highs), weights.shape)
    nonzero = (values > 0) & (weights > 0)
    values, weights = np.where(nonzero, values, 1), np.where(nonzero, weights, 1)
    return (values**STRENGTH / weights ** (1 - STRENGTH)).astype(np.float32)


def _scale(model: ir.Model, operand: ir.Value, nodes: list[ir.Node], scales: np.ndarray) -> str:
    """Divide the operand by `scales` and multiply the weights' rows by them. Return the new operand's name."""
    divisors = trace.add_initializer(model, f"{operand.name}.smoothing", ir.tensor(1 / scales))
    product = ir.node("Mul", [operand, divisors], name=f"{operand.name}.smooth")
    smooth = product.outputs[0]
    smooth.name, smooth.type, smooth.shape = product.name, operand.type, operand.shape
    model.graph.insert_before(nodes[0], product)
    for node in nodes:
        weight, matrix = node.inputs[1], trace.constant(node.inputs[1])
        assert weight is not None and matrix is not None
        name = f"{weight.name}.{smooth.name}"
        if name not in model.graph.initializers:
            trace.add_initializer(model, name, _scaled(matrix, scales, name))
        node.replace_input_with(0, smooth)
        node.replace_input_with(1, model.graph.initializers[name])
    return str(smooth.name)


def _scaled(matrix: Any, scales: np.ndarray, name: str) -> ir.LazyTensor:
    """matrix (K,N) with rows multiplied by scales (K)"""
    return trace.lazy(lambda: matrix.numpy() * scales[:, None], matrix.shape.numpy(), matrix.dtype, name)
