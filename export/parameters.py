"""Read trained tensors back from exported graphs, by our names and as they were rounded."""

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
    """Read the tensors whose names begin with `prefix`, keyed by the rest of the name.

    Raises Blip2rtError for a precision that cannot be undone.
    """
    model = onnx.load(str(path))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    values = {
        _stem(name, prefix): _array(tensor).float()
        for name, tensor in constants.items()
        if name.startswith(prefix) and tensor.data_type in floats
    }
    return values | dict(_matrices(model.graph, constants, prefix))


def convolutions(path: Path, prefix: str) -> Iterator[tuple[str, torch.Tensor, torch.Tensor | None]]:
    """Yield name, weight and bias of every convolution. Weights may be stored as fp32, fp16 or int8 with scales.

    Raises Blip2rtError for a graph in int8.
    """
    model = onnx.load(str(path))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}

    def value(name: str) -> tuple[str, torch.Tensor]:
        """Find a constant and its name behind the nodes that dequantize it."""
        node = producers.get(name)
        if node is None:
            return name, _array(constants[name]).float()
        if node.op_type == "Cast":
            return value(node.input[0])
        if node.op_type != "Mul":
            raise Blip2rtError(
                f"{path}: a graph in int8 cannot become a checkpoint again; export the encoder as int8w, fp16 or fp32"
            )
        (codes, numbers), (_, scales) = value(node.input[0]), value(node.input[1])
        return codes, numbers * scales

    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            raise Blip2rtError(
                f"{path}: {node.name} is a batch norm outside a convolution; this encoder cannot become a checkpoint"
            )
        if node.op_type == "Conv":
            name, weight = value(node.input[1])
            stem = name.removesuffix(".half").removesuffix(".codes").removesuffix(".weight")
            bias = value(node.input[2])[1] if len(node.input) > 2 and node.input[2] else None
            yield stem.removeprefix(prefix), weight, bias


def _array(tensor: onnx.TensorProto) -> torch.Tensor:
    return torch.from_numpy(np.array(numpy_helper.to_array(tensor)))


def _matrices(graph: Any, constants: dict[str, Any], prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield matrices of linear layers (out,in) and embeddings. One without a name is named after its bias."""
    producers = {output: node for node in graph.node for output in node.output}
    readers: dict[str, Any] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, node)

    def constant(name: str) -> Any:
        """Find the initializer behind casts from fp16."""
        while name in producers and producers[name].op_type == "Cast":
            name = producers[name].input[0]
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
                f"{node.name}: a graph in int8 cannot become a checkpoint again; export it in another precision"
            )
        else:
            continue
        yield _name(stem, node, readers, prefix), weight


def _name(stem: str, node: Any, readers: dict[str, Any], prefix: str) -> str:
    if stem.startswith(prefix):
        return _stem(stem, prefix)
    for name in readers[node.output[0]].input:
        if name.startswith(prefix) and name.endswith(".bias"):
            return name.removeprefix(prefix).removesuffix("bias") + "weight"
    raise Blip2rtError(f"{node.name}: its weights have no name in this graph")


def _stem(name: str, prefix: str) -> str:
    """Return the parameter's name for a constant's, which may be transposed or in fp16."""
    return name.removeprefix(prefix).removesuffix(".half").removesuffix(".T")


def _table(codes: Any, scales: Any, zeros: Any, block: int) -> torch.Tensor:
    """Dequantize an embedding table."""
    rounded = _unpacked(codes).float()
    zero, scale = (
        each.float().repeat_interleave(block, 1)[:, : rounded.shape[1]] for each in (_unpacked(zeros), _array(scales))
    )
    return (rounded - zero) * scale


def _unpacked(tensor: Any) -> torch.Tensor:
    """Unpack 4-bit or 8-bit numbers into bytes."""
    return torch.from_numpy(np.array(numpy_helper.to_array(tensor)).astype(np.uint8))
