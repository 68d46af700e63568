"""Weights that are stored small and computed with in float32: fp16 with a Cast, int8 with a Cast and a Mul.

ONNX Runtime folds these nodes when it loads the graph. Knows graphs, nothing about models.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..graphs import trace
from .rounding import Rounding, cast

_FP16_MAX = 65504.0
_MANY = 50_000  # weights of a tensor that is worth int8 where int8 is not for all


def store_fp16(model: ir.Model, rounding: Rounding) -> None:
    """Store every large float32 weight as float16 with a Cast back; values beyond float16's range stay float32."""
    first = next(iter(model.graph))
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or not _is_weight(tensor) or tensor.nbytes <= trace.INLINE_BYTES:
            continue
        array = tensor.numpy()
        if np.abs(array).max() > _FP16_MAX:
            continue
        stored = rounding.add(model, f"{value.name}.half", array.astype(np.float16))
        ir.convenience.replace_all_uses_with(value, cast(model, first, stored))
    trace.drop_unused(model)


def store_int8(model: ir.Model, rounding: Rounding) -> None:
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
        codes = rounding.add(model, f"{value.name}.codes", np.rint(array / scales).astype(np.int8))
        scale = rounding.add(model, f"{value.name}.scales", scales)
        restore = ir.node("Mul", [cast(model, first, codes), scale], name=f"{value.name}.restore")
        restore.outputs[0].name = f"{value.name}.restored"
        model.graph.insert_before(first, restore)
        ir.convenience.replace_all_uses_with(value, restore.outputs[0])
    trace.drop_unused(model)


def _is_weight(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor is a float of two dimensions or more, and no scale of one stored before."""
    stored = (tensor.name or "").endswith(".scales")
    return tensor.dtype == ir.DataType.FLOAT and len(tensor.shape) >= 2 and not stored
