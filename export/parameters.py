"""The trained tensors in a graph that the exporter has written, by our names, as they were rounded.

Knows graphs and names; nothing about models.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from blip2rt.errors import Blip2rtError
from blip2rt.modeling.quantize import QuantizedWeight, dequantize_blockwise


def parameters(path: Path, prefix: str) -> dict[str, torch.Tensor]:
    """Read the tensors whose names begin with `prefix`, by the rest of the name.

    Raises Blip2rtError: a precision that cannot be undone.
    """
    model = onnx.load(str(path))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    values = {
        _stem(name, prefix): _array(tensor).float()
        for name, tensor in constants.items()
        if name.startswith(prefix) and tensor.data_type in floats
    }
    for name, weight in _matrices(model.graph, constants, prefix):
        values[name] = weight
    return values


def convolutions(path: Path, prefix: str) -> Iterator[tuple[str, torch.Tensor, torch.Tensor | None]]:
    """Yield name, weight and bias of every convolution. Weights are floats, fp16 or int8 with scales.

    Raises Blip2rtError: a graph in int8.
    """
    model = onnx.load(str(path))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    made = {output: node for node in model.graph.node for output in node.output}

    def value(name: str) -> tuple[str, torch.Tensor]:
        """Find a constant and its name behind the nodes that bring it back to float32."""
        node = made.get(name)
        if node is None:
            return name, _array(constants[name]).float()
        if node.op_type == "Cast":
            return value(node.input[0])
        if node.op_type != "Mul":
            raise Blip2rtError(
                f"{path}: a graph in int8 cannot be trained on from; export the encoder as int8w or a float"
            )
        (codes, numbers), (_, scales) = value(node.input[0]), value(node.input[1])
        return codes, numbers * scales

    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            raise Blip2rtError(f"{path}: {node.name} is in no convolution, and cannot be taken back")
        if node.op_type == "Conv":
            name, weight = value(node.input[1])
            stem = name.removesuffix(".half").removesuffix(".codes").removesuffix(".weight")
            bias = value(node.input[2])[1] if len(node.input) > 2 and node.input[2] else None
            yield stem.removeprefix(prefix), weight, bias


def _array(tensor: onnx.TensorProto) -> torch.Tensor:
    return torch.from_numpy(np.array(numpy_helper.to_array(tensor)))


def _matrices(graph: Any, constants: dict[str, Any], prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield matrices of linear layers (out,in) and embeddings. A bias behind one names it, where its name is lost."""
    made = {output: node for node in graph.node for output in node.output}
    readers: dict[str, Any] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, node)

    def constant(name: str) -> Any:
        """Find the initializer behind casts from fp16."""
        while name in made and made[name].op_type == "Cast":
            name = made[name].input[0]
        return constants.get(name)

    for node in graph.node:
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type == "MatMulNBits":
            codes, scales, zeros = (constant(name) for name in node.input[1:4])
            shape = (attributes["N"], attributes["K"])
            weight = dequantize_blockwise(
                QuantizedWeight(
                    _array(codes), _array(scales), _array(zeros), attributes["bits"], attributes["block_size"], shape
                )
            )
            stem = node.input[1].removesuffix(".codes")
        elif node.op_type == "GatherBlockQuantized":
            codes, scales, zeros = (constant(name) for name in (node.input[0], node.input[2], node.input[3]))
            weight = _table(codes, scales, zeros, attributes["block_size"])
            stem = codes.name.removesuffix(".codes")
        elif node.op_type == "MatMul" and constant(node.input[1]) is not None:
            weight = _array(constant(node.input[1])).float().T.contiguous()
            stem = constant(node.input[1]).name
        elif node.op_type in ("DynamicQuantizeMatMul", "DequantizeLinear"):
            raise Blip2rtError(
                f"{node.name}: a graph in int8 cannot be trained on from; export the checkpoint in another precision"
            )
        else:
            continue
        yield _name(stem, node, readers, prefix), weight


def _name(stem: str, node: Any, readers: dict[str, Any], prefix: str) -> str:
    if stem.startswith(prefix):
        return _stem(stem, prefix)
    behind = readers[node.output[0]]
    for name in behind.input:
        if name.startswith(prefix) and name.endswith(".bias"):
            return name.removeprefix(prefix).removesuffix("bias") + "weight"
    raise Blip2rtError(f"{node.name}: its weights have no name in this graph")


def _stem(name: str, prefix: str) -> str:
    """A constant's name -> its parameter's; the constant may be transposed, or in fp16."""
    return name.removeprefix(prefix).removesuffix(".half").removesuffix(".T")


def _table(codes: Any, scales: Any, zeros: Any, block: int) -> torch.Tensor:
    """Bring back an embedding whose rows are codes in blocks."""
    rounded, zero, scale = (_array(each) if each is scales else _unpacked(each) for each in (codes, zeros, scales))
    wide = [each.float().repeat_interleave(block, 1)[:, : rounded.shape[1]] for each in (zero, scale)]
    return (rounded.float() - wide[0]) * wide[1]


def _unpacked(tensor: Any) -> torch.Tensor:
    """Unpack 4-bit or 8-bit numbers, each into a byte."""
    return torch.from_numpy(np.array(numpy_helper.to_array(tensor)).astype(np.uint8))
