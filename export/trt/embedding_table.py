"""A table of embeddings in 4 bits, in operators that every TensorRT has: integers that are looked up, and floats.

The numbers are those of the target ort, where head and tied table have one: (code - zero point) * scale of a block.
Six codes lie in an int32, as many as float32 holds exactly. Row r of the table is
    words[r] -> floor(w / 16^i) - 16 floor(w / 16^(i+1)) for i = 0 to 5 -> codes -> (codes - zeros[r]) * scales[r]
Knows matrices, nothing about models.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from blip2rt.modeling.quantize import unpacked

from ..graphs import trace
from ..precision.quantizer import BITS, Quantizer, matrix
from ..precision.storage import NIBBLES

_EACH = 6  # codes in a word
_FLOAT = ir.DataType.FLOAT


def quantize(model: ir.Model, node: ir.Node, quantizer: Quantizer) -> None:
    """Gather from a constant (V,K) -> the same numbers of 4 bits, in float32."""
    table, indices = node.inputs
    tensor, size = matrix(node), quantizer.blocks.size
    assert tensor is not None and table is not None and indices is not None
    rows, width = tensor.shape.numpy()
    quantized = quantizer.blocks.encode(
        str(table.name), (rows, width), lambda: torch.from_numpy(np.asarray(tensor.numpy())), BITS["int4"], size
    )
    codes, zeros = (part.numpy() for part in unpacked(quantized))
    blocks = codes.shape[1]
    stored = {
        f"{table.name}{NIBBLES}": words(codes.reshape(rows, -1)), f"{table.name}.zeros": zeros.astype(np.float16),
        f"{table.name}.scales": quantized.scales.numpy().astype(np.float16),
    }  # fmt: skip
    held = [quantizer.add(model, name, array) for name, array in stored.items()]
    new = _Chain(model, node, quantizer)
    read = [new.add("Cast", [new.add("Gather", [each, indices], axis=0)], to=_FLOAT) for each in held]
    powers = (16.0 ** -np.arange(_EACH + 1)).astype(np.float32)
    floors = new.add("Floor", [new.add("Mul", [new.add("Unsqueeze", [read[0], new.ints(-1)]), new.floats(powers)])])
    low = new.add("Slice", [floors, new.ints(0), new.ints(_EACH), new.ints(-1)])
    high = new.add("Slice", [floors, new.ints(1), new.ints(_EACH + 1), new.ints(-1)])
    each = new.add("Sub", [low, new.add("Mul", [high, new.floats(np.array(16, np.float32))])])
    flat = new.add("Reshape", [each, new.ints(0, 0, -1)])
    if flat_size(blocks * size) != blocks * size:
        flat = new.add("Slice", [flat, new.ints(0), new.ints(blocks * size), new.ints(-1)])
    cut = new.add("Reshape", [flat, new.ints(0, 0, blocks, size)])
    shifted = new.add("Sub", [cut, new.add("Unsqueeze", [read[1], new.ints(-1)])])
    scaled = new.add("Mul", [shifted, new.add("Unsqueeze", [read[2], new.ints(-1)])])
    whole = new.add("Reshape", [scaled, new.ints(0, 0, -1)])
    if blocks * size != width:
        whole = new.add("Slice", [whole, new.ints(0), new.ints(width), new.ints(-1)])
    new.finish(whole)


def flat_size(codes: int) -> int:
    """How many codes the words of so many hold."""
    return -(-codes // _EACH) * _EACH


def words(codes: np.ndarray) -> np.ndarray:
    """Codes (V,K) from 0 to 15 -> int32 (V, K/6)."""
    padded = np.pad(codes, ((0, 0), (0, flat_size(codes.shape[1]) - codes.shape[1]))).reshape(len(codes), -1, _EACH)
    packed = np.zeros(padded.shape[:2], np.int32)
    for i in range(_EACH):
        packed |= padded[:, :, i].astype(np.int32) << (4 * i)
    return packed


class _Chain:
    """New nodes before an old one, which they replace."""

    def __init__(self, model: ir.Model, old: ir.Node, quantizer: Quantizer) -> None:
        self.model, self.old, self.quantizer, self.count = model, old, quantizer, 0

    def add(self, op_type: str, inputs: list[ir.Value], **attributes: int | ir.DataType) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, name=f"{self.old.name}.{op_type.lower()}{self._next()}")
        self.model.graph.insert_before(self.old, node)
        node.outputs[0].name = node.name
        return node.outputs[0]

    def ints(self, *numbers: int) -> ir.Value:
        return self._constant(np.array(numbers, np.int64))

    def floats(self, numbers: np.ndarray) -> ir.Value:
        return self._constant(numbers)

    def finish(self, value: ir.Value) -> None:
        value.type, value.shape = ir.TensorType(_FLOAT), self.old.outputs[0].shape
        ir.convenience.replace_nodes_and_values(self.model.graph, self.old, [self.old], [], self.old.outputs, [value])

    def _constant(self, array: np.ndarray) -> ir.Value:
        return trace.add_initializer(self.model, f"{self.old.name}.constant{self._next()}", ir.tensor(array))

    def _next(self) -> int:
        self.count += 1
        return self.count
