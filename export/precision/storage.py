"""Weights that are stored small and computed with in float32: fp16 with a Cast, int8 with a Cast and a Mul.

ONNX Runtime folds these nodes when it loads the graph. Knows graphs, nothing about models.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..graphs import trace
from .quantizer import Quantizer, cast

_FP16_MAX = 65504.0
_MANY = 50_000  # weights of a tensor that is worth int8 where int8 is not for all
_MARKS = {"int8-static": ("QuantizeLinear",), "int8-dynamic": ("DynamicQuantizeMatMul",)}
_BLOCKS = ("MatMulNBits", "GatherBlockQuantized")
NIBBLES = ".nibbles"  # how the name of a table ends that has several codes of 4 bits in each number
_BYTES = (ir.DataType.INT8, ir.DataType.UINT8)


def store_fp16(model: ir.Model, quantizer: Quantizer) -> None:
    """Store every large float32 weight as float16 with a Cast back; values beyond float16's range stay float32."""
    first = next(iter(model.graph))
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or not _is_weight(tensor) or tensor.nbytes <= trace.INLINE_BYTES:
            continue
        array = tensor.numpy()
        if np.abs(array).max() > _FP16_MAX:
            continue
        stored = quantizer.add(model, f"{value.name}.half", array.astype(np.float16))
        ir.convenience.replace_all_uses_with(value, cast(model, first, stored))
    trace.drop_unused(model)


def store_int8(model: ir.Model, quantizer: Quantizer) -> None:
    """Store large weights as int8 with a float scale for each row of their first axis.

    A convolutional encoder has most of its weights in few layers, and most of its sensitivity in the others.
    """
    first = next(iter(model.graph))
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or not _is_weight(tensor):
            continue
        array = tensor.numpy()
        if array.size <= _MANY:
            continue
        largest = np.abs(array).max(axis=tuple(range(1, array.ndim)), keepdims=True)
        scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        codes = quantizer.add(model, f"{value.name}.codes", np.rint(array / scales).astype(np.int8))
        scale = quantizer.add(model, f"{value.name}.scales", scales)
        restore = ir.node("Mul", [cast(model, first, codes), scale], name=f"{value.name}.restore")
        restore.outputs[0].name = f"{value.name}.restored"
        model.graph.insert_before(first, restore)
        ir.convenience.replace_all_uses_with(value, restore.outputs[0])
    trace.drop_unused(model)


def _is_weight(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor is a float of two dimensions or more, and no scale of one stored before."""
    stored = (tensor.name or "").endswith(".scales")
    return tensor.dtype == ir.DataType.FLOAT and len(tensor.shape) >= 2 and not stored


def stored_precision(model: ir.Model, chosen: str) -> str:
    """`chosen` where the graph has it, else the finest that it has of int8w, fp16 and fp32."""
    if chosen in _MARKS and any(node.op_type in _MARKS[chosen] for node in model.graph):
        return chosen
    bits = {_bits(node) for node in model.graph if node.op_type in _BLOCKS}
    types = {value.dtype for value in model.graph.initializers.values()}
    packed = any(name.endswith(NIBBLES) for name in model.graph.initializers)
    if chosen == "int4" and (4 in bits or ir.DataType.INT4 in types or packed):
        return chosen
    if chosen not in ("fp16", "fp32") and (8 in bits or any(kind in types for kind in _BYTES)):
        return "int8w"
    return "fp16" if chosen != "fp32" and ir.DataType.FLOAT16 in types else "fp32"


def _bits(node: ir.Node) -> int:
    return node.attributes["bits"].as_int() if "bits" in node.attributes else 4
