"""Store an embedding table in 4 bits, using only operators that every TensorRT has: integer lookups and float math.

The numbers equal those of the target ort, whose head shares a tied table: (code - zero point) * scale of a block. An
int32 holds six codes, as many as float32 represents exactly. Row r of the table is
    words[r] -> floor(w / 16^i) - 16 floor(w / 16^(i+1)) for i = 0 to 5 -> codes -> (codes - zeros[r]) * scales[r]
"""

import itertools

import numpy as np
import onnx_ir as ir

from blip2rt.modeling.quantize import unpacked

from ..graphs import trace
from ..precision.quantizer import BITS, Quantizer, matrix
from ..precision.storage import NIBBLES

_CODES_PER_WORD = 6
_FLOAT = ir.DataType.FLOAT


def quantize(model: ir.Model, node: ir.Node, quantizer: Quantizer) -> None:
    """Replace a Gather from a constant (V,K) by one of 4-bit numbers, dequantized to float32."""
    table, indices = node.inputs
    tensor, size = matrix(node), quantizer.blocks.size
    assert tensor is not None and table is not None and indices is not None
    rows, width = tensor.shape.numpy()
    quantized = quantizer.encode(str(table.name), tensor, BITS["int4"])
    codes, zeros = (part.numpy() for part in unpacked(quantized))
    blocks = codes.shape[1]
    stored = [
        quantizer.add(model, f"{table.name}{NIBBLES}", pack_words(codes.reshape(rows, -1))),
        quantizer.add(model, f"{table.name}.zeros", zeros.astype(np.float16)),
        quantizer.add(model, f"{table.name}.scales", quantized.scales.numpy().astype(np.float16)),
    ]
    new = _NodeChain(model, node)
    read = [new.add("Cast", [new.add("Gather", [each, indices], axis=0)], to=_FLOAT) for each in stored]
    powers = (16.0 ** -np.arange(_CODES_PER_WORD + 1)).astype(np.float32)
    floors = new.add("Floor", [new.add("Mul", [new.add("Unsqueeze", [read[0], new.ints(-1)]), new.constant(powers)])])
    low = new.add("Slice", [floors, new.ints(0), new.ints(_CODES_PER_WORD), new.ints(-1)])
    high = new.add("Slice", [floors, new.ints(1), new.ints(_CODES_PER_WORD + 1), new.ints(-1)])
    each = new.add("Sub", [low, new.add("Mul", [high, new.constant(np.array(16, np.float32))])])
    flat = new.add("Reshape", [each, new.ints(0, 0, -1)])
    if padded_codes(blocks * size) != blocks * size:
        flat = new.add("Slice", [flat, new.ints(0), new.ints(blocks * size), new.ints(-1)])
    cut = new.add("Reshape", [flat, new.ints(0, 0, blocks, size)])
    shifted = new.add("Sub", [cut, new.add("Unsqueeze", [read[1], new.ints(-1)])])
    scaled = new.add("Mul", [shifted, new.add("Unsqueeze", [read[2], new.ints(-1)])])
    whole = new.add("Reshape", [scaled, new.ints(0, 0, -1)])
    if blocks * size != width:
        whole = new.add("Slice", [whole, new.ints(0), new.ints(width), new.ints(-1)])
    new.finish(whole)


def padded_codes(codes: int) -> int:
    """Round a number of codes up to whole words."""
    return -(-codes // _CODES_PER_WORD) * _CODES_PER_WORD


def pack_words(codes: np.ndarray) -> np.ndarray:
    """codes (V,K) from 0 to 15 -> int32 (V, K/6)"""
    padded = np.pad(codes, ((0, 0), (0, padded_codes(codes.shape[1]) - codes.shape[1]))).reshape(
        len(codes), -1, _CODES_PER_WORD
    )
    packed = np.zeros(padded.shape[:2], np.int32)
    for i in range(_CODES_PER_WORD):
        packed |= padded[:, :, i].astype(np.int32) << (4 * i)
    return packed


class _NodeChain:
    """New nodes before an old one, which they replace."""

    def __init__(self, model: ir.Model, old: ir.Node) -> None:
        self.model, self.old, self._numbers = model, old, itertools.count(1)

    def add(self, op_type: str, inputs: list[ir.Value], **attributes: int | ir.DataType) -> ir.Value:
        name = f"{self.old.name}.{op_type.lower()}{next(self._numbers)}"
        node = ir.node(op_type, inputs, attributes, name=name)
        self.model.graph.insert_before(self.old, node)
        node.outputs[0].name = node.name
        return node.outputs[0]

    def ints(self, *numbers: int) -> ir.Value:
        return self.constant(np.array(numbers, np.int64))

    def constant(self, array: np.ndarray) -> ir.Value:
        return trace.add_initializer(self.model, f"{self.old.name}.constant{next(self._numbers)}", ir.tensor(array))

    def finish(self, value: ir.Value) -> None:
        value.type, value.shape = ir.TensorType(_FLOAT), self.old.outputs[0].shape
        ir.convenience.replace_nodes_and_values(self.model.graph, self.old, [self.old], [], self.old.outputs, [value])
