"""The CUDA driver calls that the backend trt needs: memory, copies, one stream, CUDA graphs.

Wraps NVIDIA's cuda-bindings, whose functions return (error, values...).
"""

from __future__ import annotations

import contextlib
import importlib
import threading
import weakref
from types import TracebackType
from typing import Any

from ...errors import BackendError
from ...install_hints import pip_install

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream, which TensorRT's builder uses
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate during a capture
_ON_HOST, _ON_DEVICE = 1, 2  # CUmemorytype
_OUT_OF_MEMORY = 2

# Where a copy begins or ends: address, bytes from one head and one tensor to the next, whether it is on the host.
End = tuple[int, int, int, bool]


class CudaError(BackendError):
    """A driver call failed."""


class OutOfMemory(CudaError):
    """The GPU is out of memory."""


def load_bindings() -> Any:
    """The module driver of cuda-bindings. Raises BackendError if it is not installed."""
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise BackendError(
            f"the TensorRT backend needs cuda-bindings ({error}): {pip_install('trt-cu12')}, or trt-cu13 if "
            "`blip2rt doctor` reports a driver for CUDA 13"
        ) from error


class Device:
    """The first GPU and one stream, which runs a model's work in order. Addresses are ints.

    `with device:` makes the GPU current and keeps other threads away from it.
    """

    def __init__(self, driver: Any) -> None:
        """Raises BackendError without a driver or GPU."""
        self._driver, self._lock = driver, threading.RLock()
        try:
            self._call("cuInit", 0)
        except (ImportError, OSError, RuntimeError) as error:
            raise CudaError(
                f"no NVIDIA driver is installed ({' '.join(str(error).split())}): run blip2rt doctor"
            ) from None
        self._context = self._call("cuDevicePrimaryCtxRetain", self._call("cuDeviceGet", 0))  # TensorRT's, too
        self._later: list[tuple[str, Any]] | None = None  # what to free after a capture
        with self:
            self.stream = self._call("cuStreamCreate", _NON_BLOCKING)
        weakref.finalize(self, _destroy_stream, driver, self._context, self.stream).atexit = False

    def __enter__(self) -> Device:
        self._lock.acquire()
        try:
            self._call("cuCtxSetCurrent", self._context)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lock.release()

    def allocate(self, size: int, on_host: bool = False) -> int:
        """Allocate `size` bytes, on the host page-locked. Raises OutOfMemory."""
        return int(self._call("cuMemAllocHost" if on_host else "cuMemAlloc", size))

    def release(self, address: int, on_host: bool = False) -> None:
        """Free memory once the stream does not use it any more."""
        self._drop("cuMemFreeHost" if on_host else "cuMemFree", address)

    def destroy_graph(self, graph: Any) -> None:
        self._drop("cuGraphExecDestroy", graph)

    def _drop(self, call: str, what: Any) -> None:
        with contextlib.suppress(CudaError), self:  # a failed device may reject every call
            if self._later is not None:  # the garbage collector runs during a capture, which this would end
                self._later.append((call, what))
                return
            with contextlib.suppress(CudaError):
                self.wait()
            self._call(call, what)

    def clear(self, address: int, size: int) -> None:
        """Fill with zeros. size: a multiple of 4."""
        self._call("cuMemsetD32Async", address, 0, size // 4, self.stream)

    def upload(self, address: int, host: int, size: int) -> None:
        """Copy from page-locked memory."""
        self._call("cuMemcpyHtoDAsync", address, host, size, self.stream)

    def download(self, host: int, address: int, size: int) -> None:
        """Copy to page-locked memory; complete after the next wait()."""
        self._call("cuMemcpyDtoHAsync", host, address, size, self.stream)

    def copy_blocks(self, source: End, target: End, size: int, heads: int, tensors: int) -> None:
        """Copy `tensors` x `heads` runs of `size` bytes; complete at return if an end is on the host."""
        block, driver = self._driver.CUDA_MEMCPY3D(), self._driver
        block.WidthInBytes, block.Height, block.Depth = size, heads, tensors
        for prefix, (address, head, tensor, on_host) in (("src", source), ("dst", target)):
            setattr(block, f"{prefix}MemoryType", driver.CUmemorytype(_ON_HOST if on_host else _ON_DEVICE))
            setattr(block, f"{prefix}Host" if on_host else f"{prefix}Device", address)
            setattr(block, f"{prefix}Pitch", head)
            setattr(block, f"{prefix}Height", tensor // head)
        self._call("cuMemcpy3DAsync", block, self.stream)
        if source[3] or target[3]:
            self.wait()

    def wait(self) -> None:
        """Wait for all work on the stream."""
        self._call("cuStreamSynchronize", self.stream)

    def capture(self, work: Any) -> Any:
        """What `work` enqueues on the stream as a CUDA graph, ready to launch. Raises BackendError."""
        later: list[tuple[str, Any]] = []
        self._later = later
        try:
            self._call("cuStreamBeginCapture", self.stream, self._driver.CUstreamCaptureMode(_THREAD_LOCAL))
            try:
                work()
            finally:
                graph = self._call("cuStreamEndCapture", self.stream)
            try:
                return self._call("cuGraphInstantiate", graph, 0)
            finally:
                self._call("cuGraphDestroy", graph)
        finally:
            self._later = None
            for call, what in later:
                self._drop(call, what)

    def launch(self, graph: Any) -> None:
        self._call("cuGraphLaunch", graph, self.stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        error, *values = getattr(self._driver, name)(*arguments)
        if int(error):
            if int(error) == _OUT_OF_MEMORY:
                size = f" for {arguments[0] / 1e6:.0f} MB" if name.startswith("cuMemAlloc") else ""
                raise OutOfMemory(
                    f"the GPU is out of memory{size} ({name}): build smaller plans (max_batch, max_beams, capacity) "
                    "or close other programs that use it"
                )
            raise CudaError(f"{name} failed: {getattr(error, 'name', error)}")
        return values[0] if len(values) == 1 else values


class Buffer:
    """Memory that is freed with the object: the device's, or page-locked memory of the host."""

    def __init__(self, device: Device, size: int, on_host: bool = False) -> None:
        self.size = size
        with device:
            self.address = device.allocate(size, on_host)
        weakref.finalize(self, device.release, self.address, on_host).atexit = False  # at exit the driver does


def _destroy_stream(driver: Any, context: Any, stream: Any) -> None:
    driver.cuCtxSetCurrent(context)
    driver.cuStreamDestroy(stream)
