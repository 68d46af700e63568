"""Checks a plan on the GPU by comparing its outputs with ONNX Runtime's on the CPU, for each profile.

Some builders produce plans that run but give wrong results, such as TensorRT 10.3 with two profiles.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...bundle import EMBED, LAST_INDEX, LLM, PAST_KEY, PAST_MASK, POSITION_IDS, TOKEN_IDS
from ...errors import BackendError
from . import builder
from .builder import Axes
from .cuda import Cuda, OutOfMemory
from .lane import Lane, Plan
from .plans import graph_bytes

_MIN_COSINE = 0.98  # with ONNX Runtime's output: 16-bit and 8-bit rounding stays above it, a wrong layer does not
_WEIGHT_COPIES = 3  # that ONNX Runtime may hold: as stored, and in float32 on a CPU without float16
_MAX_ROWS = 2  # since the CPU is slow
_MASKED = -1e9  # past_mask of an empty cache position

Arrays = dict[str, np.ndarray[Any, Any]]


class PlanCheck:
    """Checks the plans of one bundle on the first GPU."""

    def __init__(self, trt: Any, cuda: Cuda, vocab: int) -> None:
        """vocab: the language model's vocabulary size; 0 without a language model."""
        self._trt, self._cuda, self._vocab = trt, cuda, vocab

    def __call__(self, component: str, plan: Path, graph: Path, profiles: Sequence[Axes]) -> dict[str, Any]:
        """Return {"by", "profiles": [{"cosine", "of"}], "scratch"}, with "wrong" if the plan is wrong.

        Without a check, return {"left out": reason}, with "again" if the next load may succeed. Raises BackendError if
        TensorRT cannot load or run the plan.
        """
        if shortage := _memory_shortage(graph):
            return {"left out": shortage}
        self._cuda.activate()
        lane = Lane(self._cuda)
        try:
            session = _session(graph)
            log = builder.logger(self._trt)
            loaded = Plan(self._trt, builder.create(log, self._trt.Runtime), plan, component, log)
            return self._compare(lane, loaded, session, profiles)
        except OutOfMemory as error:
            return {"left out": str(error), "again": True}  # other programs may free GPU memory
        except _OrtFailure as error:
            return {"left out": f"ONNX Runtime cannot run the graph on the CPU: {' '.join(str(error).split())}"}
        finally:
            with contextlib.suppress(BackendError):  # a failed device may reject every call
                lane.close()

    def _compare(self, lane: Lane, plan: Plan, session: Any, profiles: Sequence[Axes]) -> dict[str, Any]:
        import onnxruntime

        findings: dict[str, Any] = {"by": f"onnxruntime {onnxruntime.__version__} on the CPU", "profiles": []}
        rng = np.random.default_rng(0)
        for number, axes in enumerate(profiles):
            tokens = self._vocab if plan.name == EMBED else 2  # the Q-Former has another vocabulary
            ports = session.get_inputs()
            feeds = {each.name: _values(rng, each, axes, tokens) for each in ports}
            if plan.name == LLM and PAST_MASK not in feeds:  # as if half of the cache were filled
                shape = feeds[PAST_KEY.format(0)].shape
                feeds[POSITION_IDS] += min(shape[2] // 2, shape[2] - feeds[POSITION_IDS].shape[1])
            expected = _run(session, feeds)
            tensors = lane.run(plan, feeds, number)
            actual = {name: lane.download(tensor) for name, tensor in tensors.items()}
            floats = [name for name in expected if expected[name].dtype.kind == "f"]
            cosine, name = min((_cosine(actual[name], expected[name]), name) for name in floats)
            findings["profiles"].append({"cosine": round(cosine, 6), "of": name})
            if cosine < _MIN_COSINE:
                message = f"{name} of profile {number} has a cosine of {cosine:.3f} with the graph's output"
                findings.setdefault("wrong", message)
        return {**findings, "scratch": plan.scratch}


class _OrtFailure(Exception):
    """ONNX Runtime cannot run the graph."""


def _values(rng: np.random.Generator, port: Any, axes: Axes, tokens: int) -> np.ndarray[Any, Any]:
    """Random values for an input, of the profile's optimum size. tokens: number of token ids."""
    shape = tuple(_size(axis, axes) if isinstance(axis, str) else int(axis) for axis in port.shape)
    if port.name == POSITION_IDS:
        return np.broadcast_to(np.arange(shape[-1]), shape).astype(np.int64)  # a copy
    if port.name == LAST_INDEX:
        return np.full(shape, _size("S", axes) - 1, np.int64)
    if port.name == PAST_MASK:  # as if half of the cache were filled
        return np.broadcast_to(np.where(np.arange(shape[-1]) < shape[-1] / 2, 0, _MASKED), shape).astype(np.float32)
    if port.name == TOKEN_IDS:
        return rng.integers(0, tokens, shape)
    if "int" in port.type:  # masks
        return np.ones(shape, np.int32 if "int32" in port.type else np.int64)
    return rng.normal(size=shape).astype(np.float16 if "float16" in port.type else np.float32)


def _size(axis: str, axes: Axes) -> int:
    minimum, optimum, _ = axes[axis]
    return max(minimum, min(optimum, _MAX_ROWS)) if axis == "B" else optimum


def _session(graph: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # quantize exactly as the graph says
    try:
        return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _OrtFailure(error) from error


def _run(session: Any, feeds: Arrays) -> Arrays:
    names = [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, feeds), strict=True))
    except Exception as error:
        raise _OrtFailure(error) from error


def _cosine(actual: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    """Cosine similarity; -1 if a value is not finite."""
    a, b = actual.astype(np.float64).reshape(-1), expected.astype(np.float64).reshape(-1)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    if not np.isfinite(norms):
        return -1.0
    if norms == 0:
        return 1.0 if not a.any() and not b.any() else 0.0
    return float(a @ b / norms)


def _memory_shortage(graph: Path) -> str:
    """Why ONNX Runtime should not load the graph for lack of host memory, which a Jetson shares with its GPU; or ""."""
    needed, free = _WEIGHT_COPIES * graph_bytes(graph), _free_memory()
    if free is None or needed < free:
        return ""
    return f"ONNX Runtime needs about {needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free"


def _free_memory() -> int | None:
    """Available memory in bytes; None if the system does not report it."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None
