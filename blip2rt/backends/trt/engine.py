"""Loads plans. A Plan is a graph that the core's Session runs, see engines/python/python_graph.h."""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BackendError
from . import builder
from .cuda import Buffer, Device, End
from .runner import ALIGNMENT, Runner, Tensor

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "INT32": "int32", "INT8": "int8", "BOOL": "bool"}
CACHED = ("past_key_", "past_value_", "new_key_", "new_value_", "cross_")  # on the device when a run is bound

Port = tuple[str, str, list[int]]  # name, dtype, shape with -1 for a dynamic axis


class Plan:
    """A loaded plan. All runs share one copy of the weights and of the scratch memory on the device."""

    def __init__(self, device: Device, trt: Any, runtime: Any, file: Path, component: str, log: Any) -> None:
        """log: the runtime's logger, from builder.logger(). Raises BackendError if TensorRT rejects the plan."""
        self.device, self.component, self._trt, self._log = device, component, trt, log
        with _map_file(file) as data:  # mapped, so that the host holds no second copy of the weights
            self._engine = runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise BackendError(
                f"{component}: {builder.identity(trt)} rejects the plan {file}{log.reason()}. It was built for another "
                "GPU or version, or memory is short: delete the file to rebuild it"
            )
        engine, profiles = self._engine, range(self._engine.num_optimization_profiles)
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self._feeds = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self._results = [name for name in names if name not in self._feeds]
        self.dtypes = {name: self._dtype(name) for name in names}
        # (minimum, maximum) of each input in each profile
        self.limits = [{name: self._range(name, profile) for name in self._feeds} for profile in profiles]
        if not self.limits:
            raise BackendError(f"{component}: the plan {file} has no profile: delete the file to rebuild it")
        self.inputs: list[Port] = [(name, str(self.dtypes[name]), self._fixed(name)) for name in self._feeds]
        self.outputs: list[Port] = [
            (name, str(self.dtypes[name]), list(engine.get_tensor_shape(name))) for name in self._results
        ]
        self.max_rows = int(self.limits[0][self._feeds[0]][1][0])
        self._idle: dict[int, list[Runner]] = {profile: [] for profile in profiles}
        self._buffers: dict[int, Buffer] = {}
        self.capturable = True  # until a capture fails
        self.scratch = Buffer(device, max(int(engine.device_memory_size_v2), 1))

    # What the core calls

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str]) -> list[np.ndarray[Any, Any]]:
        """Run on arrays of the host: (name, address, shape) -> arrays. As many rows at once as the plan takes."""
        rows, most = inputs[0][2][0], max(limits[inputs[0][0]][1][0] for limits in self.limits)
        parts = []
        for start in range(0, rows, most):
            count = min(most, rows - start)
            chunk = [
                (name, address + start * self.bytes_of(name, shape[1:]), (count, *shape[1:]))
                for name, address, shape in inputs
            ]
            parts.append(self._run(chunk, outputs))
        return parts[0] if len(parts) == 1 else [np.concatenate(each) for each in zip(*parts, strict=True)]

    def bind(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Bound:
        """Prepare a run that reads and writes at these addresses each time it is called."""
        return Bound(self, inputs, outputs)

    def allocate(self, size: int) -> int:
        """Memory of the device, filled with zeros. Raises BackendError."""
        buffer = Buffer(self.device, -(-max(size, 1) // ALIGNMENT) * ALIGNMENT)
        with self.device:
            self.device.clear(buffer.address, buffer.size)
            self._buffers[buffer.address] = buffer
        return buffer.address

    def release(self, address: int) -> None:
        with self.device:
            del self._buffers[address]

    def copy(self, block: tuple[End, End, int, int, int]) -> None:
        """Copy keys and values, see engines/base/memory.h."""
        with self.device:
            self.device.copy_blocks(*block)

    # Runners

    def take(self, shapes: dict[str, tuple[int, ...]]) -> Runner:
        """A runner whose profile allows these shapes of all inputs. Raises BackendError."""
        missing = [name for name in self._feeds if name not in shapes]
        if missing:
            raise BackendError(f"{self.component}: the plan reads {', '.join(missing)}: build the plans again")
        profile = next((i for i, limits in enumerate(self.limits) if _fits(shapes, limits)), None)
        if profile is None:
            name = next(
                name for name in self._feeds if not any(_fits({name: shapes[name]}, each) for each in self.limits)
            )
            largest = [each[name][1] for each in self.limits]
            raise BackendError(
                f"{self.component}: no profile of the plan takes {name} of shape {shapes[name]}; the largest are "
                f"{', '.join(map(str, largest))}: build larger plans"
            )
        with self.device:
            return self._idle[profile].pop() if self._idle[profile] else Runner(self, profile)

    def give_back(self, runner: Runner) -> None:
        with self.device:
            self._idle[runner.profile].append(runner)

    def context(self, profile: int) -> Any:
        context = self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise BackendError(f"{self.component}: not enough GPU memory for a context of the plan{self.reason()}")
        if not context.set_optimization_profile_async(profile, int(self.device.stream)):
            raise BackendError(f"{self.component}: TensorRT rejects profile {profile} of the plan{self.reason()}")
        context.set_device_memory(self.scratch.address, self.scratch.size)
        return context

    def reason(self) -> str:
        """TensorRT's last error in parentheses, to end a message with."""
        return str(self._log.reason())

    def unbound(self, outputs: Sequence[str]) -> list[str]:
        """The plan's other outputs, which need memory, too."""
        return [name for name in self._results if name not in outputs]

    def _run(self, inputs: Sequence[Tensor], outputs: Sequence[str]) -> list[np.ndarray[Any, Any]]:
        runner = self.take({name: shape for name, _, shape in inputs})
        with self.device:
            runner.set_inputs(inputs, ())
            arrays = [np.empty(runner.shape(name), self.dtypes[name]) for name in outputs]
            runner.set_outputs([(n, a.ctypes.data, a.shape) for n, a in zip(outputs, arrays, strict=True)], ())
            runner.run()
        self.give_back(runner)  # one that has failed is dropped
        return arrays

    def bytes_of(self, name: str, shape: Sequence[int]) -> int:
        return math.prod(shape) * self.dtypes[name].itemsize

    def _range(self, name: str, profile: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        least, _, most = self._engine.get_tensor_profile_shape(name, profile)
        return tuple(least), tuple(most)

    def _fixed(self, name: str) -> list[int]:
        """An input's shape, with -1 for each axis whose size may vary."""
        ranges = [each for limits in self.limits for each in limits[name]]
        return [sizes[0] if len(set(sizes)) == 1 else -1 for sizes in zip(*ranges, strict=True)]

    def _dtype(self, name: str) -> np.dtype[Any]:
        kind = str(self._engine.get_tensor_dtype(name)).rpartition(".")[2]
        if kind not in _DTYPES:
            raise BackendError(f"{self.component}: the plan's tensor {name} is {kind}, which this backend cannot read")
        return np.dtype(_DTYPES[kind])


class Bound:
    """A run with fixed addresses. Calling it waits for its outputs on the host."""

    def __init__(self, plan: Plan, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        self._plan, self._runner = plan, plan.take({name: shape for name, _, shape in inputs})
        with plan.device:
            self._runner.set_inputs(inputs, CACHED)
            self._runner.set_outputs(outputs, CACHED)

    def __call__(self) -> None:
        with self._plan.device:
            self._runner.run()

    def __del__(self) -> None:
        runner = getattr(self, "_runner", None)
        if runner is not None and not runner.failed:
            with contextlib.suppress(BackendError):
                runner.drop_graph()
                self._plan.give_back(runner)


def _fits(shapes: dict[str, tuple[int, ...]], limits: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> bool:
    for name, shape in shapes.items():
        least, most = limits.get(name, ((), ()))
        if len(shape) != len(most) or any(not a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
            return False
    return True


def _map_file(file: Path) -> mmap.mmap:
    """Map a plan's file into memory."""
    try:
        with open(file, "rb") as opened:
            return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise BackendError(f"cannot read the plan {file} ({error}): delete the file to rebuild it") from error
