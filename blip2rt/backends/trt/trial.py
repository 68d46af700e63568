"""Tests a plan on the GPU: its outputs beside those of ONNX Runtime on the CPU, for each profile.

Builders have had faults that leave a plan which runs and is wrong, as TensorRT 10.3 with two profiles. Knows tensors by
name and plans, nothing about images or text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ... import bundle as contract
from ...errors import BackendError
from . import builder
from .builder import Axes
from .cuda import Cuda, OutOfMemory
from .lane import Lane, Plan
from .plans import graph_bytes

_LEAST = 0.98  # cosine of an output with ONNX Runtime's: rounding of 16 and 8 bits stays above, a wrong layer does not
_COPIES = 3  # of a graph's weights in ONNX Runtime: its own, in float32 for a CPU without float16
_ROWS = 2  # at most: a CPU is slow
_MASKED = -1e9  # of a slot that holds nothing

Arrays = dict[str, np.ndarray[Any, Any]]


class Trial:
    """What tests the plans of one bundle on the first GPU."""

    def __init__(self, trt: Any, cuda: Cuda, vocab: int) -> None:
        """vocab: the language model's tokens, 0 without one."""
        self._trt, self._cuda, self._vocab = trt, cuda, vocab

    def __call__(self, component: str, plan: Path, graph: Path, profiles: Sequence[Axes]) -> dict[str, Any]:
        """Return {"by", "profiles": [{"cosine", "of"}], "scratch"}, with "wrong" where it is; or {"left out": why},
        with "again" where the next load may find it otherwise.

        Raises BackendError where TensorRT cannot load or run the plan.
        """
        if lacking := _lacking(graph):
            return {"left out": lacking}
        self._cuda.activate()
        lane = Lane(self._cuda)
        try:
            session = _session(graph)
            log = builder.logger(self._trt)
            loaded = Plan(self._trt, builder.made(log, self._trt.Runtime), plan, component, log)
            return self._compare(lane, loaded, session, profiles)
        except OutOfMemory as error:
            return {"left out": str(error), "again": True}  # what others hold of the GPU is not held for ever
        except _Unable as error:
            return {"left out": f"ONNX Runtime cannot run the graph on the CPU: {' '.join(str(error).split())}"}
        finally:
            with contextlib.suppress(BackendError):  # after a failure the device may refuse everything
                lane.close()

    def _compare(self, lane: Lane, plan: Plan, session: Any, profiles: Sequence[Axes]) -> dict[str, Any]:
        import onnxruntime

        said: dict[str, Any] = {"by": f"onnxruntime {onnxruntime.__version__} on the CPU", "profiles": []}
        rng = np.random.default_rng(0)
        for number, axes in enumerate(profiles):
            tokens = self._vocab if plan.name == contract.EMBED else 2  # texts have a vocabulary of their own
            ports = session.get_inputs()
            feeds = {each.name: _values(rng, each, axes, tokens) for each in ports}
            if plan.name == contract.LLM and contract.PAST_MASK not in feeds:  # half of the cache is filled
                shape = feeds[contract.PAST_KEY.format(0)].shape
                feeds[contract.POSITION_IDS] += min(shape[2] // 2, shape[2] - feeds[contract.POSITION_IDS].shape[1])
            want = _run(session, feeds)
            tensors = lane.run(plan, feeds, number)
            got = {name: lane.download(tensor) for name, tensor in tensors.items()}
            cosine, name = min((_cosine(got[name], want[name]), name) for name in want if want[name].dtype.kind == "f")
            said["profiles"].append({"cosine": round(cosine, 6), "of": name})
            if cosine < _LEAST:
                said.setdefault("wrong", f"profile {number} gives {name} with a cosine of {cosine:.3f} to the graph's")
        return {**said, "scratch": plan.scratch}


class _Unable(Exception):
    """ONNX Runtime fails."""


def _values(rng: np.random.Generator, port: Any, axes: Axes, tokens: int) -> np.ndarray[Any, Any]:
    """What an input of ONNX Runtime may hold, of the profile's usual sizes. tokens: the ids that there are."""
    shape = tuple(_size(axis, axes) if isinstance(axis, str) else int(axis) for axis in port.shape)
    if port.name == contract.POSITION_IDS:
        return np.broadcast_to(np.arange(shape[-1]), shape).astype(np.int64)  # a copy
    if port.name == contract.LAST_INDEX:
        return np.full(shape, _size("S", axes) - 1, np.int64)
    if port.name == contract.PAST_MASK:  # half of the cache is filled
        return np.broadcast_to(np.where(np.arange(shape[-1]) < shape[-1] / 2, 0, _MASKED), shape).astype(np.float32)
    if port.name == contract.TOKEN_IDS:
        return rng.integers(0, tokens, shape)
    if "int" in port.type:  # masks
        return np.ones(shape, np.int32 if "int32" in port.type else np.int64)
    return rng.normal(size=shape).astype(np.float16 if "float16" in port.type else np.float32)


def _size(axis: str, axes: Axes) -> int:
    least, usual, _ = axes[axis]
    return max(least, min(usual, _ROWS)) if axis == "B" else usual


def _session(graph: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # int8 as the operators say
    try:
        return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _Unable(error) from error


def _run(session: Any, feeds: Arrays) -> Arrays:
    names = [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, feeds), strict=True))
    except Exception as error:
        raise _Unable(error) from error


def _cosine(got: np.ndarray[Any, Any], want: np.ndarray[Any, Any]) -> float:
    """-1 where one is not finite."""
    a, b = got.astype(np.float64).reshape(-1), want.astype(np.float64).reshape(-1)
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    if not np.isfinite(lengths):
        return -1.0
    if lengths == 0:
        return 1.0 if not a.any() and not b.any() else 0.0
    return float(a @ b / lengths)


def _lacking(graph: Path) -> str:
    """Why ONNX Runtime should not be asked: it needs memory for the weights too, which a Jetson shares."""
    needed, free = _COPIES * graph_bytes(graph), _free()
    if free is None or needed < free:
        return ""
    return f"ONNX Runtime needs about {needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free"


def _free() -> int | None:
    """Bytes of memory that can be had; None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None
