"""Store weights small and compute in float32: fp16 with a Cast, int8 with a Cast and a Mul.

ONNX Runtime folds these nodes when it loads the graph.
"""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from ..graphs import trace
from .quantizer import Quantizer, cast, channel_codes

_FP16_MAX = 65504.0
_MIN_INT8_SIZE = 50_000  # weights of a tensor that is worth storing as int8
_INT8_OPERATORS = {"int8-static": "QuantizeLinear", "int8-dynamic": "DynamicQuantizeMatMul"}
NIBBLES = ".nibbles"  # suffix of a table that packs several 4-bit codes into each integer


def store_fp16(model: ir.Model, quantizer: Quantizer) -> None:
    """Store every large float32 weight as float16 with a Cast back; values beyond float16's range stay float32."""
    first = next(iter(model.graph))
    for value, array in _weights(model, trace.INLINE_BYTES):
        if np.abs(array).max() <= _FP16_MAX:
            stored = quantizer.add(model, f"{value.name}.half", array.astype(np.float16))
            ir.convenience.replace_all_uses_with(value, cast(model, first, stored))
    trace.drop_unused(model)


def store_int8(model: ir.Model, quantizer: Quantizer) -> None:
    """Store large weights as int8 with a float scale for each row of their first axis.

    Most weights of a convolutional encoder are in a few layers, while the others are the most sensitive.
    """
    first = next(iter(model.graph))
    for value, array in _weights(model, 4 * _MIN_INT8_SIZE):
        integers, scales = channel_codes(array, 0)
        codes = quantizer.add(model, f"{value.name}.codes", integers)
        scale = quantizer.add(model, f"{value.name}.scales", scales.reshape(-1, *[1] * (array.ndim - 1)))
        restore = ir.node("Mul", [cast(model, first, codes), scale], name=f"{value.name}.restore")
        restore.outputs[0].name = f"{value.name}.restored"
        model.graph.insert_before(first, restore)
        ir.convenience.replace_all_uses_with(value, restore.outputs[0])
    trace.drop_unused(model)


def _weights(model: ir.Model, size: int) -> Iterator[tuple[ir.Value, np.ndarray]]:
    """Yield float32 initializers of two or more dimensions and of more than `size` bytes, except stored scales."""
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) < 2 or tensor.nbytes <= size:
            continue
        if not (tensor.name or "").endswith(".scales"):
            yield value, tensor.numpy()


def stored_precision(model: ir.Model, requested: str) -> str:
    """Return `requested` if the graph has it, else the most precise of int8w, fp16 and fp32 that it has.

    A graph without anything to quantize keeps its precision.
    """
    operators = {node.op_type for node in model.graph}
    if _INT8_OPERATORS.get(requested) in operators:
        return requested
    blocks = [node for node in model.graph if node.op_type in ("MatMulNBits", "GatherBlockQuantized")]
    bits = {node.attributes["bits"].as_int() if "bits" in node.attributes else 4 for node in blocks}
    types = {value.dtype for value in model.graph.initializers.values()}
    packed = any(name.endswith(NIBBLES) for name in model.graph.initializers)
    if requested == "int4" and (4 in bits or ir.DataType.INT4 in types or packed):
        return requested
    if requested not in ("fp16", "fp32") and (8 in bits or types & {ir.DataType.INT8, ir.DataType.UINT8}):
        return "int8w"
    return "fp16" if requested != "fp32" and ir.DataType.FLOAT16 in types else "fp32"
