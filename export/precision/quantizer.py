"""Shared by all precisions: which nodes hold weights, how weights become integers, where new tensors are stored."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import torch

from blip2rt.modeling.quantize import QuantizedWeight, quantize_blockwise, unpacked

from ..graphs import trace
from .activations import Ranges

DOMAIN = "com.microsoft"
BITS = {"int4": 4, "int8w": 8}
_FLOAT32 = np.dtype(np.float32)
INT8_MAX = 127  # of symmetric int8
_INT4_OFFSET = 8  # unsigned int4 codes minus this are symmetric around 0
StoreTensor = Callable[[ir.TensorProtocol], ir.TensorProtocol]  # trace.DataFile.store_large, which frees the memory
Progress = Callable[[int, int], None]  # (done, total)
# (name, shape (N,K), reader of the (N,K) matrix, bits, block) -> quantized matrix
EncodeMatrix = Callable[[str, tuple[int, int], Callable[[], torch.Tensor], int, int], QuantizedWeight]


def round_to_nearest(
    name: str, shape: tuple[int, int], read: Callable[[], torch.Tensor], bits: int, block: int
) -> QuantizedWeight:
    """Quantize a matrix (N,K) block by block, rounding to nearest."""
    return quantize_blockwise(read(), bits, block)


@dataclass(frozen=True)
class BlockFormat:
    """How matrices become blocks of integers."""

    size: int  # weights along K that share a scale and a zero point
    encode: EncodeMatrix = round_to_nearest
    activations: int = 8  # bits that activations have at least where they meet int4 weights: 8 or 16


@dataclass(frozen=True)
class Quantizer:
    """How weights are quantized, where new tensors are stored, and a callback for progress."""

    blocks: BlockFormat
    store: StoreTensor = lambda tensor: tensor
    progress: Progress = lambda done, total: None
    ranges: Ranges = field(default_factory=dict)  # of activations, for int8-static

    def add(self, model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
        """Add a stored initializer to the graph."""
        return trace.add_initializer(model, name, self.store(ir.tensor(array, name=name)))

    def encode(self, name: str, matrix: ir.TensorProtocol, bits: int, transpose: bool = False) -> QuantizedWeight:
        """Quantize a matrix (N,K), or the transpose of (K,N)."""
        rows, columns = matrix.shape.numpy()
        shape = (columns, rows) if transpose else (rows, columns)

        def read() -> torch.Tensor:
            tensor = torch.from_numpy(np.asarray(matrix.numpy()))
            return tensor.T if transpose else tensor

        return self.blocks.encode(name, shape, read, bits, self.blocks.size)

    def block_codes(self, name: str, matrix: ir.TensorProtocol) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """matrix (K,N) -> int8 codes (K',N) from -8 to 7, scales and offsets (K'/block,N) float32

        K' is K rounded up to whole blocks; the padding is 0. A weight is code * scale + offset of its block.
        """
        quantized = self.encode(name, matrix, BITS["int4"], transpose=True)
        codes, zeros = (part.numpy().astype(np.int8) for part in unpacked(quantized))
        scales = quantized.scales.float().numpy()
        offsets = scales * (_INT4_OFFSET - zeros.astype(np.float32))
        return (codes - _INT4_OFFSET).reshape(len(codes), -1).T, scales.T, offsets.T


def channel_codes(weight: np.ndarray, axis: int, dtype: np.dtype = _FLOAT32) -> tuple[np.ndarray, np.ndarray]:
    """weight -> int8 codes of the same shape, scales (size of `axis`); codes * scales approximate the weight"""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(others, keepdims=True)
    scales = np.where(largest > 0, largest / INT8_MAX, 1).astype(dtype)
    scales = np.maximum(scales, np.finfo(dtype).tiny)
    codes = np.clip(np.rint(weight / scales.astype(np.float32)), -INT8_MAX, INT8_MAX).astype(np.int8)
    return codes, scales.reshape(-1)


def matrices(model: ir.Model, *op_types: str) -> list[ir.Node]:
    """List the nodes of these types, MatMul or Gather, that read a constant matrix."""
    return [node for node in model.graph if node.op_type in op_types and matrix(node) is not None]


def matrix(node: ir.Node) -> ir.TensorProtocol | None:
    """Return the constant float matrix of a MatMul (right-hand side) or of a Gather along its rows."""
    if node.op_type not in ("MatMul", "Gather") or node.domain not in ("", "ai.onnx"):
        return None
    tensor = trace.constant(node.inputs[1 if node.op_type == "MatMul" else 0])
    if tensor is None or len(tensor.shape) != 2 or tensor.dtype != ir.DataType.FLOAT:
        return None
    if node.op_type == "Gather" and "axis" in node.attributes and node.attributes["axis"].as_int() != 0:
        return None
    # Packed rows must end at a whole byte, so that each row of a table starts at one.
    return None if node.op_type == "Gather" and tensor.shape.numpy()[1] % 2 else tensor


def replace_node(model: ir.Model, old: ir.Node, new: ir.Node) -> None:
    """Replace `old` by `new`; each has one output."""
    ir.convenience.replace_nodes_and_values(model.graph, old, [old], [new], old.outputs, new.outputs)


def cast(model: ir.Model, before: ir.Node, stored: ir.Value) -> ir.Value:
    """Add a Cast of a stored value to float32, which ONNX Runtime folds when it loads the graph."""
    node = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT}, name=f"{stored.name}.cast")
    node.outputs[0].name = f"{stored.name}.float"
    model.graph.insert_before(before, node)
    return node.outputs[0]
