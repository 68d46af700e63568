"""Runs plans: their tensors, contexts with their shapes and addresses, one stream, memory that is kept.

Knows tensors by name and what a plan asks of them; nothing about captions, tokens or how plans are built.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BackendError
from . import builder
from .cuda import Cuda
from .kernel_cache import KernelCache
from .sizes import aligned

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "INT32": "int32", "INT8": "int8", "BOOL": "bool"}


@dataclass(frozen=True)
class DeviceTensor:
    """Memory of the device as a tensor."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class Plan:
    """A plan, loaded: its weights are on the device once, however many contexts run it."""

    def __init__(self, trt: Any, runtime: Any, file: Path, component: str, log: Any) -> None:
        """log: the runtime's, builder.logger(). Raises BackendError where TensorRT refuses the plan."""
        self.name = component
        self._trt, self._log = trt, log
        with _mapped(file) as data:  # pages of the file, not a copy of the weights beside the device's
            self._loaded = runtime.deserialize_cuda_engine(data)
        if self._loaded is None:
            raise BackendError(
                f"{component}: {builder.identity(trt)} refuses the plan {file}{log.because()}, as it does those of "
                "another GPU or version, or where memory is short: remove the file, and it is built again"
            )
        self._met: set[tuple[int, str, tuple[int, ...]]] = set()
        self._kernels = KernelCache(trt, self._loaded, file) if KernelCache.known(trt) else None
        names = [self._loaded.get_tensor_name(index) for index in range(self._loaded.num_io_tensors)]
        self.inputs = [name for name in names if self._loaded.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.outputs = [name for name in names if name not in self.inputs]
        self.dtypes = {name: self._dtype(name) for name in names}

    @property
    def scratch(self) -> int:
        """Bytes that a context needs while it runs, whatever the profile."""
        return int(self._loaded.device_memory_size_v2)

    def largest(self, name: str, profile: int) -> tuple[int, ...]:
        """The largest shape of an input."""
        return tuple(self._loaded.get_tensor_profile_shape(name, profile)[2])

    def place(self, output: str) -> str:
        """The input whose memory an output is written over, as a cache is; else the output itself."""
        past = output.replace("present_", "past_", 1)
        return past if past in self.inputs else output

    def context(self, profile: int, stream: Any) -> Any:
        managed = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._loaded.create_execution_context(managed if self._kernels is None else self._kernels.config)
        if context is None:
            raise BackendError(f"{self.name}: TensorRT has no memory for a context of the plan{self.because()}")
        if not context.set_optimization_profile_async(profile, int(stream)):
            raise BackendError(f"{self.name}: TensorRT refuses profile {profile} of the plan{self.because()}")
        return context

    def because(self) -> str:
        """TensorRT's own reason for its last refusal, as the end of a sentence."""
        return str(self._log.because())

    def meets(self, profile: int, name: str, shape: tuple[int, ...]) -> bool:
        """Whether this is the first time that an input has this shape."""
        key = profile, name, shape
        known = key in self._met
        self._met.add(key)
        return not known

    def keep_kernels(self) -> None:
        """Keep what TensorRT has compiled for the shapes that it has met."""
        if self._kernels is not None:
            self._kernels.keep()

    def _dtype(self, name: str) -> np.dtype[Any]:
        kind = str(self._loaded.get_tensor_dtype(name)).rpartition(".")[2]
        if kind not in _DTYPES:
            raise BackendError(f"{self.name}: the plan's tensor {name} is {kind}, which this backend does not know")
        return np.dtype(_DTYPES[kind])


def _mapped(file: Path) -> mmap.mmap:
    """The bytes of a plan's file, read as they are needed."""
    try:
        with open(file, "rb") as opened:
            return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise BackendError(f"cannot read the plan {file} ({error}): remove the file, and it is built again") from error


class Runner:
    """A plan's context with one profile on one lane's stream; tensors stay set until others take their place."""

    def __init__(self, lane: Lane, plan: Plan, profile: int) -> None:
        self._lane, self._plan, self._profile = lane, plan, profile
        self._context = plan.context(profile, lane.stream)
        self._set: dict[str, DeviceTensor] = {}
        self._scratch: tuple[int, int] | None = None

    def set(self, tensors: Mapping[str, DeviceTensor]) -> bool:
        """Bind shapes and device addresses. Return whether any binding changed.

        Raises BackendError: a tensor's dtype is not the plan's, or no profile allows its shape.
        """
        changed = {name: tensor for name, tensor in tensors.items() if self._set.get(name) != tensor}
        for name, tensor in changed.items():
            wanted = self._plan.dtypes.get(name)
            if wanted != tensor.dtype:
                raise BackendError(
                    f"{self._plan.name}: {name} is {tensor.dtype}, but the plan's {wanted}: build it anew"
                )
            if name in self._plan.inputs and not self._context.set_input_shape(name, tensor.shape):
                raise BackendError(
                    f"{self._plan.name}: the plan does not take {name} of shape {tensor.shape}; the largest is "
                    f"{self._plan.largest(name, self._profile)}{self._plan.because()}"
                )
            if not self._context.set_tensor_address(name, tensor.address):
                raise BackendError(f"{self._plan.name}: TensorRT refuses the address of {name}{self._plan.because()}")
            self._set[name] = tensor
            if name in self._plan.inputs and self._plan.meets(self._profile, name, tensor.shape):
                self._lane.prepared.add(self._plan)
        scratch = self._lane.scratch(self._plan.scratch)
        if scratch != self._scratch:
            self._context.set_device_memory(*scratch)
            self._scratch = scratch
            return True
        return bool(changed)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an output, once every input is set."""
        shape = tuple(self._context.get_tensor_shape(name))
        if min(shape, default=0) < 0:
            raise BackendError(f"{self._plan.name}: the plan does not know the shape of {name} beforehand: {shape}")
        return shape

    def enqueue(self) -> None:
        """Put one run on the lane's stream. Raises BackendError."""
        missing = [name for name in (*self._plan.inputs, *self._plan.outputs) if name not in self._set]
        assert not missing, f"{self._plan.name}: {missing} were never set"
        if not self._context.execute_async_v3(int(self._lane.stream)):
            raise BackendError(f"{self._plan.name}: TensorRT cannot run the plan{self._plan.because()}")

    def capturable(self) -> bool:
        """Whether a run may be captured in a CUDA graph. tensorrt-rtx says so; tensorrt is asked by trying."""
        asked = getattr(self._context, "is_stream_capturable", None)
        return asked is None or bool(asked(int(self._lane.stream)))

    @property
    def name(self) -> str:
        return self._plan.name

    def close(self) -> None:
        """End the context now: an error's traceback may hold this for long."""
        self._context = None


class Lane:
    """What one call at a time needs of the device: a stream, scratch memory, contexts, buffers by name.

    All of it is kept for the next call. Work of a lane is done in order.
    """

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.stream = cuda.stream()
        self.version = 0  # counts buffers that have moved: a graph that was captured before knows their old places
        self.prepared: set[Plan] = set()  # plans that have met new shapes since the lane was lent
        self._buffers: dict[str, tuple[int, int]] = {}
        self._runners: dict[tuple[str, int], Runner] = {}
        self._held: list[Any] = []  # host memory that copies may still read or write

    def buffer(self, name: str, size: int) -> int:
        """Address of a buffer of at least `size` bytes, zeros where it is new. A larger one replaces a smaller."""
        address, have = self._buffers.get(name, (0, 0))
        if have >= size:
            return address
        if address:
            self.wait()
            del self._buffers[name]
            self.cuda.free(address)
            self.version += 1
        size = aligned(max(size, 1))
        address = self.cuda.allocate(size)
        self._buffers[name] = (address, size)
        self.cuda.fill(address, 0, size // 4, self.stream)
        return address

    def address(self, name: str) -> int:
        """The address of a buffer that is there."""
        return self._buffers[name][0]

    def tensor(self, name: str, shape: tuple[int, ...], dtype: Any) -> DeviceTensor:
        """A buffer as a tensor."""
        kind = np.dtype(dtype)
        return DeviceTensor(self.buffer(name, math.prod(shape) * kind.itemsize), shape, kind)

    def scratch(self, size: int) -> tuple[int, int]:
        """Memory that contexts share, as they run one after the other."""
        address = self.buffer("scratch", size)
        return address, self._buffers["scratch"][1]

    def upload(self, name: str, array: np.ndarray[Any, Any]) -> DeviceTensor:
        """Copy an array into the buffer of its name."""
        data = np.ascontiguousarray(array)
        tensor = self.tensor(name, data.shape, data.dtype)
        if tensor.size:
            self.copy_in(tensor.address, data)
        return tensor

    def copy_in(self, address: int, data: np.ndarray[Any, Any]) -> None:
        """Copy a contiguous array to the device; it is kept until the next wait.

        A GPU that shares the machine's memory may read it after the call.
        """
        self._held.append(data)
        self.cuda.upload(address, data.ctypes.data, data.nbytes, self.stream)

    def copy_out(self, data: np.ndarray[Any, Any], address: int) -> None:
        """Copy from the device into a contiguous array. It is there, and kept, until the next wait."""
        self._held.append(data)
        self.cuda.download(data.ctypes.data, address, data.nbytes, self.stream)

    def wait(self) -> None:
        """Wait for all that was put on the stream."""
        self.cuda.wait(self.stream)
        self._held.clear()

    def download(self, tensor: DeviceTensor) -> np.ndarray[Any, Any]:
        """Wait for the stream. Return the tensor as an array."""
        array = np.empty(tensor.shape, tensor.dtype)
        self.copy_out(array, tensor.address)
        self.wait()
        return array

    def runner(self, plan: Plan, profile: int = 0) -> Runner:
        """The lane's one context of a plan and a profile."""
        key = (plan.name, profile)
        if key not in self._runners:
            self._runners[key] = Runner(self, plan, profile)
        return self._runners[key]

    def run(self, plan: Plan, feeds: Mapping[str, np.ndarray[Any, Any]], profile: int = 0) -> dict[str, DeviceTensor]:
        """Arrays by name -> the outputs, on the device until the next run of the plan."""
        runner = self.runner(plan, profile)
        runner.set({name: self.upload(f"{plan.name}.{name}", array) for name, array in feeds.items()})
        outputs = {
            name: self.tensor(f"{plan.name}.{plan.place(name)}", runner.shape(name), plan.dtypes[name])
            for name in plan.outputs
        }
        runner.set(outputs)
        runner.enqueue()
        return outputs

    def close(self) -> None:
        """Give everything back. The lane is not used any more."""
        self.cuda.activate()
        self.wait()
        for runner in self._runners.values():
            runner.close()
        self._runners.clear()
        for address, _size in self._buffers.values():
            self.cuda.free(address)
        self._buffers.clear()
        self.cuda.destroy_stream(self.stream)
