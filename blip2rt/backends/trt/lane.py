"""Running plans: a lane owns a stream, named device buffers and the execution contexts of plans.

Does not know about captions, tokens or how plans are built.
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
    """A tensor in device memory."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class Plan:
    """A loaded plan. All contexts that run it share one copy of the weights on the device."""

    def __init__(self, trt: Any, runtime: Any, file: Path, component: str, log: Any) -> None:
        """log: the runtime's logger, from builder.logger(). Raises BackendError if TensorRT rejects the plan."""
        self.name = component
        self._trt, self._log = trt, log
        with _map_file(file) as data:  # mapped, so that the host holds no second copy of the weights
            self._loaded = runtime.deserialize_cuda_engine(data)
        if self._loaded is None:
            raise BackendError(
                f"{component}: {builder.identity(trt)} rejects the plan {file}{log.reason()}. It was built for another "
                "GPU or version, or memory is short: delete the file to rebuild it"
            )
        self._seen_shapes: set[tuple[int, str, tuple[int, ...]]] = set()
        self._kernels = KernelCache(trt, self._loaded, file) if KernelCache.is_supported(trt) else None
        names = [self._loaded.get_tensor_name(index) for index in range(self._loaded.num_io_tensors)]
        self.inputs = [name for name in names if self._loaded.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.outputs = [name for name in names if name not in self.inputs]
        self.dtypes = {name: self._dtype(name) for name in names}

    @property
    def scratch(self) -> int:
        """Bytes of scratch memory that a context needs, for any profile."""
        return int(self._loaded.device_memory_size_v2)

    def largest(self, name: str, profile: int) -> tuple[int, ...]:
        """The largest shape of an input that the profile allows."""
        return tuple(self._loaded.get_tensor_profile_shape(name, profile)[2])

    def buffer_of(self, output: str) -> str:
        """The name of an output's buffer: its own, or that of the cache input that it overwrites."""
        past = output.replace("present_", "past_", 1)
        return past if past in self.inputs else output

    def context(self, profile: int, stream: Any) -> Any:
        managed = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._loaded.create_execution_context(managed if self._kernels is None else self._kernels.config)
        if context is None:
            raise BackendError(f"{self.name}: not enough GPU memory for a context of the plan{self.reason()}")
        if not context.set_optimization_profile_async(profile, int(stream)):
            raise BackendError(f"{self.name}: TensorRT rejects profile {profile} of the plan{self.reason()}")
        return context

    def reason(self) -> str:
        """TensorRT's last error in parentheses, to end a message with."""
        return str(self._log.reason())

    def is_new_shape(self, profile: int, name: str, shape: tuple[int, ...]) -> bool:
        """Whether an input has this shape for the first time."""
        key = profile, name, shape
        new = key not in self._seen_shapes
        self._seen_shapes.add(key)
        return new

    def save_kernels(self) -> None:
        """Store the kernels that TensorRT has compiled at run time."""
        if self._kernels is not None:
            self._kernels.save()

    def _dtype(self, name: str) -> np.dtype[Any]:
        kind = str(self._loaded.get_tensor_dtype(name)).rpartition(".")[2]
        if kind not in _DTYPES:
            raise BackendError(f"{self.name}: the plan's tensor {name} is {kind}, which this backend does not support")
        return np.dtype(_DTYPES[kind])


def _map_file(file: Path) -> mmap.mmap:
    """Map a plan's file into memory."""
    try:
        with open(file, "rb") as opened:
            return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise BackendError(f"cannot read the plan {file} ({error}): delete the file to rebuild it") from error


class Runner:
    """An execution context of a plan, with one profile, on a lane's stream. Tensors stay bound until replaced."""

    def __init__(self, lane: Lane, plan: Plan, profile: int) -> None:
        self._lane, self._plan, self._profile = lane, plan, profile
        self._context = plan.context(profile, lane.stream)
        self._bound: dict[str, DeviceTensor] = {}
        self._scratch: tuple[int, int] | None = None

    def set(self, tensors: Mapping[str, DeviceTensor]) -> bool:
        """Bind shapes and device addresses. Return whether any binding changed.

        Raises BackendError if a tensor's dtype differs from the plan's or the profile does not allow its shape.
        """
        changed = {name: tensor for name, tensor in tensors.items() if self._bound.get(name) != tensor}
        for name, tensor in changed.items():
            expected = self._plan.dtypes.get(name)
            if expected != tensor.dtype:
                raise BackendError(
                    f"{self._plan.name}: {name} is {tensor.dtype}, but the plan expects {expected}: rebuild the plan"
                )
            if name in self._plan.inputs and not self._context.set_input_shape(name, tensor.shape):
                raise BackendError(
                    f"{self._plan.name}: the plan does not accept {name} of shape {tensor.shape}; the largest is "
                    f"{self._plan.largest(name, self._profile)}{self._plan.reason()}"
                )
            if not self._context.set_tensor_address(name, tensor.address):
                raise BackendError(f"{self._plan.name}: TensorRT rejects the address of {name}{self._plan.reason()}")
            self._bound[name] = tensor
            if name in self._plan.inputs and self._plan.is_new_shape(self._profile, name, tensor.shape):
                self._lane.plans_with_new_shapes.add(self._plan)
        scratch = self._lane.scratch(self._plan.scratch)
        if scratch != self._scratch:
            self._context.set_device_memory(*scratch)
            self._scratch = scratch
            return True
        return bool(changed)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an output, once every input is bound."""
        shape = tuple(self._context.get_tensor_shape(name))
        if min(shape, default=0) < 0:
            raise BackendError(f"{self._plan.name}: the shape of {name} depends on the data: {shape}")
        return shape

    def enqueue(self) -> None:
        """Enqueue one run on the lane's stream. Raises BackendError."""
        missing = [name for name in (*self._plan.inputs, *self._plan.outputs) if name not in self._bound]
        assert not missing, f"{self._plan.name}: {missing} were never bound"
        if not self._context.execute_async_v3(int(self._lane.stream)):
            raise BackendError(f"{self._plan.name}: TensorRT cannot run the plan{self._plan.reason()}")

    def capturable(self) -> bool:
        """Whether a run can be captured in a CUDA graph. Only tensorrt-rtx can tell; for tensorrt, assume so."""
        query = getattr(self._context, "is_stream_capturable", None)
        return query is None or bool(query(int(self._lane.stream)))

    @property
    def name(self) -> str:
        return self._plan.name

    def close(self) -> None:
        """Release the context now, since an error's traceback may keep this object alive."""
        self._context = None


class Lane:
    """The device resources of one call at a time: a stream, scratch memory, contexts and named buffers.

    They are reused by the next call. Work on a lane runs in order.
    """

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.stream = cuda.stream()
        self.version = 0  # incremented when a buffer moves, which invalidates captured graphs
        self.plans_with_new_shapes: set[Plan] = set()  # since the lane was acquired
        self._buffers: dict[str, tuple[int, int]] = {}
        self._runners: dict[tuple[str, int], Runner] = {}
        self._pending_arrays: list[Any] = []  # host memory that copies may still read or write

    def buffer(self, name: str, size: int) -> int:
        """Address of a buffer of at least `size` bytes. A new or enlarged buffer is filled with zeros."""
        address, allocated = self._buffers.get(name, (0, 0))
        if allocated >= size:
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
        """The address of an existing buffer."""
        return self._buffers[name][0]

    def tensor(self, name: str, shape: tuple[int, ...], dtype: Any) -> DeviceTensor:
        """A buffer as a tensor."""
        kind = np.dtype(dtype)
        return DeviceTensor(self.buffer(name, math.prod(shape) * kind.itemsize), shape, kind)

    def scratch(self, size: int) -> tuple[int, int]:
        """Address and size of the scratch memory, which contexts share because they run one after the other."""
        address = self.buffer("scratch", size)
        return address, self._buffers["scratch"][1]

    def upload(self, name: str, array: np.ndarray[Any, Any]) -> DeviceTensor:
        """Copy an array into the named buffer."""
        data = np.ascontiguousarray(array)
        tensor = self.tensor(name, data.shape, data.dtype)
        if tensor.size:
            self.copy_in(tensor.address, data)
        return tensor

    def copy_in(self, address: int, data: np.ndarray[Any, Any]) -> None:
        """Copy a contiguous array to the device, and keep it alive until the next wait.

        An integrated GPU may read it after the call has returned.
        """
        self._pending_arrays.append(data)
        self.cuda.upload(address, data.ctypes.data, data.nbytes, self.stream)

    def copy_out(self, data: np.ndarray[Any, Any], address: int) -> None:
        """Copy from the device into a contiguous array, which is valid after the next wait."""
        self._pending_arrays.append(data)
        self.cuda.download(data.ctypes.data, address, data.nbytes, self.stream)

    def wait(self) -> None:
        """Wait for all work on the stream."""
        self.cuda.wait(self.stream)
        self._pending_arrays.clear()

    def download(self, tensor: DeviceTensor) -> np.ndarray[Any, Any]:
        """Wait for the stream. Return the tensor as an array."""
        array = np.empty(tensor.shape, tensor.dtype)
        self.copy_out(array, tensor.address)
        self.wait()
        return array

    def runner(self, plan: Plan, profile: int = 0) -> Runner:
        """The lane's context of a plan with a profile, created on first use."""
        key = (plan.name, profile)
        if key not in self._runners:
            self._runners[key] = Runner(self, plan, profile)
        return self._runners[key]

    def run(self, plan: Plan, feeds: Mapping[str, np.ndarray[Any, Any]], profile: int = 0) -> dict[str, DeviceTensor]:
        """Run a plan on arrays by input name -> its outputs on the device, valid until the plan's next run."""
        runner = self.runner(plan, profile)
        runner.set({name: self.upload(f"{plan.name}.{name}", array) for name, array in feeds.items()})
        outputs = {
            name: self.tensor(f"{plan.name}.{plan.buffer_of(name)}", runner.shape(name), plan.dtypes[name])
            for name in plan.outputs
        }
        runner.set(outputs)
        runner.enqueue()
        return outputs

    def close(self) -> None:
        """Release everything. The lane cannot be used afterwards."""
        self.cuda.activate()
        self.wait()
        for runner in self._runners.values():
            runner.close()
        self._runners.clear()
        for address, _size in self._buffers.values():
            self.cuda.free(address)
        self._buffers.clear()
        self.cuda.destroy_stream(self.stream)
