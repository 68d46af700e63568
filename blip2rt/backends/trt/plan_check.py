"""Compares a new plan's outputs with ONNX Runtime's on the CPU.

Some builders produce plans that run but give wrong results, such as TensorRT before 10.8 with two profiles.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...bundle import LAST_INDEX, PAST_MASK, POSITION_IDS, TOKEN_IDS
from ...bundle.manifest import Component
from .builder import Axes
from .engine import Plan

MIN_COSINE = 0.98  # 16-bit and 8-bit rounding stays above it, a wrong layer does not
_MAX_ROWS = 2  # since the CPU is slow
_MASKED = -1e9  # past_mask of an empty cache position
Arrays = dict[str, np.ndarray[Any, Any]]


def cosine(plan: Plan, component: Component, graph: Path, axes: Axes) -> tuple[float, str]:
    """The smallest cosine of an output with the graph's, and its name, for random inputs of a profile's optimum sizes.

    Raises BackendError if the plan cannot run, and what ONNX Runtime raises if it cannot.
    """
    feeds = {port.name: _values(port.name, port.dtype, port.shape, axes) for port in component.inputs}
    names = [port.name for port in component.outputs if np.dtype(port.dtype).kind == "f"]
    tensors = [(name, array.ctypes.data, array.shape) for name, array in feeds.items()]
    found = dict(zip(names, plan.run(tensors, names), strict=True))
    expected = dict(zip(names, _run(graph, names, feeds), strict=True))
    return min((_cosine(found[name], expected[name]), name) for name in names)


def _values(name: str, dtype: str, axis_names: Any, axes: Axes) -> np.ndarray[Any, Any]:
    shape = tuple(_size(axis, axes) if isinstance(axis, str) else int(axis) for axis in axis_names)
    rng, kind = np.random.default_rng(0), np.dtype(dtype)
    if name == POSITION_IDS:
        return np.ascontiguousarray(np.broadcast_to(np.arange(shape[-1]) + 1, shape), kind)
    if name == LAST_INDEX:
        return np.full(shape, _size("S", axes) - 1, kind)
    if name == PAST_MASK:  # as if half of the cache were filled
        return np.ascontiguousarray(
            np.broadcast_to(np.where(np.arange(shape[-1]) * 2 < shape[-1], 0, _MASKED), shape), kind
        )
    if name == TOKEN_IDS or kind.kind == "i":  # token 1, masks
        return np.ones(shape, kind)
    return rng.normal(size=shape).astype(kind)


def _size(axis: str, axes: Axes) -> int:
    minimum, optimum, _ = axes[axis]
    return max(minimum, min(optimum, _MAX_ROWS)) if axis == "B" else optimum


def _run(graph: Path, names: list[str], feeds: Mapping[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # quantize exactly as the graph says
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    arrays: list[np.ndarray[Any, Any]] = session.run(names, dict(feeds))
    return arrays


def _cosine(actual: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    """Cosine similarity; -1 if a value is not finite."""
    a, b = actual.astype(np.float64).reshape(-1), expected.astype(np.float64).reshape(-1)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    if not np.isfinite(norms):
        return -1.0
    return float(a @ b / norms) if norms else float(not a.any() and not b.any())
