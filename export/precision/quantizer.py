"""What all precisions share: which nodes hold weights, how these become blocks, and where new tensors go.

Knows graphs and matrices, nothing about models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from blip2rt.modeling.quantize import QuantizedWeight, quantize_blockwise, unpacked

from ..graphs import trace

DOMAIN = "com.microsoft"
BITS = {"int4": 4, "int8w": 8}
LEVELS = 127  # of int8, on either side of 0
_MIDDLE = 8  # of the 16 codes of int4
# Puts a new tensor where it belongs (trace.DataFile.keep): a large model's weights are never together in memory.
Keep = Callable[[ir.TensorProtocol], ir.TensorProtocol]
Progress = Callable[[int, int], None]  # (done, total)
# (name, shape (N,K), reader of the (N,K) matrix, bits, block) -> its blocks
EncodeMatrix = Callable[[str, tuple[int, int], Callable[[], torch.Tensor], int, int], QuantizedWeight]


def keep_in_memory(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Keep a tensor as it is."""
    return tensor


def no_progress(done: int, total: int) -> None:
    """Show no progress."""


def round_to_nearest(
    name: str, shape: tuple[int, int], read: Callable[[], torch.Tensor], bits: int, block: int
) -> QuantizedWeight:
    """Round a matrix (N,K) to the nearest blocks."""
    return quantize_blockwise(read(), bits, block)


@dataclass(frozen=True)
class BlockFormat:
    """How matrices become blocks of integers."""

    size: int  # weights along K that share a scale and a zero point
    encode: EncodeMatrix = round_to_nearest
    activations: int = 8  # bits that int4 weights meet, at least: 8 or 16


@dataclass(frozen=True)
class Quantizer:
    """How weights are rounded, where new tensors go, and who hears how far it is."""

    blocks: BlockFormat
    keep: Keep = keep_in_memory
    progress: Progress = no_progress

    def add(self, model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
        """Add an initializer to the graph; its tensor goes where it belongs."""
        return trace.add_initializer(model, name, self.keep(ir.tensor(array, name=name)))


def matrices(model: ir.Model, *op_types: str) -> list[ir.Node]:
    """Return the nodes of these kinds, MatMul or Gather, that read a constant matrix."""
    return [node for node in model.graph if node.op_type in op_types and matrix(node) is not None]


def matrix(node: ir.Node) -> ir.TensorProtocol | None:
    """The constant float matrix of a MatMul (right-hand side) or of a Gather along its rows."""
    if node.op_type not in ("MatMul", "Gather") or node.domain not in ("", "ai.onnx"):
        return None
    tensor = trace.constant(node.inputs[1 if node.op_type == "MatMul" else 0])
    if tensor is None or len(tensor.shape) != 2 or tensor.dtype != ir.DataType.FLOAT:
        return None
    if node.op_type == "Gather" and ("axis" in node.attributes and node.attributes["axis"].as_int() != 0):
        return None
    # A packed row has to end at a whole byte, or the rows of a table would not start at one.
    return None if node.op_type == "Gather" and tensor.shape.numpy()[1] % 2 else tensor


def replace_node(model: ir.Model, old: ir.Node, new: ir.Node) -> None:
    """Put `new` in the place of `old`; both have one result."""
    ir.convenience.replace_nodes_and_values(model.graph, old, [old], [new], old.outputs, new.outputs)


def cast(model: ir.Model, before: ir.Node, stored: ir.Value) -> ir.Value:
    """Add a Cast of a stored value to float32. ONNX Runtime folds it when it loads the graph."""
    node = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT}, name=f"{stored.name}.cast")
    node.outputs[0].name = f"{stored.name}.float"
    model.graph.insert_before(before, node)
    return node.outputs[0]


def channel_codes(weight: np.ndarray, axis: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """weight -> int8 codes of the same shape, scales (size of `axis`); codes * scales are nearly the weight."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(others, keepdims=True)
    scales = np.where(largest > 0, largest / LEVELS, 1).astype(dtype)
    scales = np.maximum(scales, np.finfo(dtype).tiny)
    codes = np.clip(np.rint(weight / scales.astype(np.float32)), -LEVELS, LEVELS).astype(np.int8)
    return codes, scales.reshape(-1)


def block_codes(name: str, matrix: ir.TensorProtocol, blocks: BlockFormat) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """matrix (K,N) -> int8 codes (K',N) from -8 to 7, scales and offsets (K'/block,N) float32; K' is K in whole blocks.

    A weight is code * scale + offset of its block. Those behind the matrix's end are 0.
    """
    rows, columns = matrix.shape.numpy()
    quantized = blocks.encode(
        name, (columns, rows), lambda: torch.from_numpy(np.asarray(matrix.numpy())).T, BITS["int4"], blocks.size
    )
    codes, zeros = (part.numpy().astype(np.int8) for part in unpacked(quantized))
    scales = quantized.scales.float().numpy()
    offsets = scales * (_MIDDLE - zeros.astype(np.float32))
    return (codes - _MIDDLE).reshape(columns, -1).T, scales.T, offsets.T
