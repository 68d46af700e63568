"""The CUDA driver's few calls that the backend trt makes: memory, streams, graphs, kernels compiled by NVRTC.

Over NVIDIA's cuda-bindings, whose functions return (error, values...). Knows addresses and bytes, nothing about plans.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import BackendError
from ...install_hints import pip_install

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: work on the default stream, TensorRT's builder's for one, is not waited for
_NO_TIMING = 2  # CU_EVENT_DISABLE_TIMING
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate while this one captures
_MAJOR, _MINOR = 75, 76  # CUdevice_attribute: compute capability
_OUT_OF_MEMORY = 2


class CudaError(BackendError):
    """A call failed; the message names it, the error and, where there is one, the fix."""


class OutOfMemory(CudaError):
    """The GPU has no room."""


def load_bindings() -> tuple[Any, Any]:
    """The modules driver and nvrtc of cuda-bindings. Raises BackendError: not installed."""
    try:
        return importlib.import_module("cuda.bindings.driver"), importlib.import_module("cuda.bindings.nvrtc")
    except ImportError as error:
        raise BackendError(
            f"the TensorRT backend needs cuda-bindings ({error}): {pip_install('trt-cu12')}, or trt-cu13 by what "
            "`blip2rt doctor` says of the driver"
        ) from error


class Cuda:
    """The first GPU. Addresses are ints; streams, graphs and kernels the bindings' own objects."""

    def __init__(self, driver: Any, nvrtc: Any) -> None:
        """Raises BackendError: no driver, no GPU, or a driver older than the compiler of the kernels."""
        self._driver, self._nvrtc = driver, nvrtc
        try:
            self._call("cuInit", 0)
        except (ImportError, OSError, RuntimeError) as error:
            raise CudaError(
                f"no NVIDIA driver is installed ({' '.join(str(error).split())}); see blip2rt doctor"
            ) from None
        version = self._call("cuDriverGetVersion")
        self.driver = (version // 1000, version % 1000 // 10)
        compiler = self._compiled("nvrtcVersion")
        if self.driver < (compiler[0], 0):
            older = f", or {pip_install('trt-cu12')}" if self.driver >= (12, 0) else ""
            raise CudaError(
                f"the driver runs CUDA up to {self.driver[0]}.{self.driver[1]}, but the kernels' compiler is of CUDA "
                f"{compiler[0]}.{compiler[1]}: update the driver{older}"
            )
        device = self._call("cuDeviceGet", 0)
        self.compute_capability: tuple[int, int] = (self._attribute(_MAJOR, device), self._attribute(_MINOR, device))
        self._context = self._call("cuDevicePrimaryCtxRetain", device)  # the one that TensorRT uses
        self.activate()

    def _attribute(self, number: int, device: Any) -> int:
        """Releases of cuda-bindings differ in whether they take a plain number."""
        return int(self._call("cuDeviceGetAttribute", self._driver.CUdevice_attribute(number), device))

    def activate(self) -> None:
        """Makes the calls of this thread go to the GPU."""
        self._call("cuCtxSetCurrent", self._context)

    # Memory

    def allocate(self, size: int) -> int:
        """Raises OutOfMemory."""
        return int(self._call("cuMemAlloc", size))

    def free(self, address: int) -> None:
        self._call("cuMemFree", address)

    def allocate_host(self, size: int) -> int:
        """Host memory that the GPU writes to on its own."""
        return int(self._call("cuMemAllocHost", size))

    def free_host(self, address: int) -> None:
        self._call("cuMemFreeHost", address)

    def fill(self, address: int, word: int, count: int, stream: Any) -> None:
        """`count` words of 4 bytes."""
        self._call("cuMemsetD32Async", address, word, count, stream)

    def upload(self, address: int, host: int, size: int, stream: Any) -> None:
        """From ordinary host memory: it is read before the call returns."""
        self._call("cuMemcpyHtoDAsync", address, host, size, stream)

    def download(self, host: int, address: int, size: int, stream: Any) -> None:
        """Done when the stream has been waited for."""
        self._call("cuMemcpyDtoHAsync", host, address, size, stream)

    def copy(self, address: int, source: int, size: int, stream: Any) -> None:
        """Within the GPU's memory."""
        self._call("cuMemcpyDtoDAsync", address, source, size, stream)

    # Streams, events, graphs

    def stream(self) -> Any:
        return self._call("cuStreamCreate", _NON_BLOCKING)

    def wait(self, stream: Any) -> None:
        self._call("cuStreamSynchronize", stream)

    def destroy_stream(self, stream: Any) -> None:
        self._call("cuStreamDestroy", stream)

    def event(self) -> Any:
        return self._call("cuEventCreate", _NO_TIMING)

    def record(self, event: Any, stream: Any) -> None:
        self._call("cuEventRecord", event, stream)

    def wait_event(self, event: Any) -> None:
        self._call("cuEventSynchronize", event)

    def destroy_event(self, event: Any) -> None:
        self._call("cuEventDestroy", event)

    def begin_capture(self, stream: Any) -> None:
        """What follows on the stream is written down and not run."""
        self._call("cuStreamBeginCapture", stream, self._driver.CUstreamCaptureMode(_THREAD_LOCAL))

    def end_capture(self, stream: Any) -> Any:
        """What was written down, ready to be launched. Raises CudaError: something in it cannot be captured."""
        graph = self._call("cuStreamEndCapture", stream)
        try:
            return self._call("cuGraphInstantiate", graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)

    def launch_graph(self, graph: Any, stream: Any) -> None:
        self._call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        self._call("cuGraphExecDestroy", graph)

    # Kernels

    @property
    def compiler(self) -> str:
        return "nvrtc {}.{}".format(*self._compiled("nvrtcVersion"))

    def compile(self, source: str, headers: Mapping[str, str], architecture: str) -> bytes:
        """CUDA C++ -> machine code for an architecture ("sm_87"), without a GPU. Raises CudaError: the first fault."""
        program = self._compiled("nvrtcCreateProgram", source.encode(), b"kernels.cu", len(headers),
                                 [text.encode() for text in headers.values()],
                                 [name.encode() for name in headers])  # fmt: skip
        try:
            return self._code(program, architecture)
        finally:
            self._compiled("nvrtcDestroyProgram", program)

    def _code(self, program: Any, architecture: str) -> bytes:
        # Nothing is contracted: the numbers are those of the CPU's loop.
        options = [f"--gpu-architecture={architecture}".encode(), b"-std=c++17", b"-default-device", b"--fmad=false"]
        failed = int(self._nvrtc.nvrtcCompileProgram(program, len(options), options)[0])
        if failed:
            log = b" " * self._compiled("nvrtcGetProgramLogSize", program)
            self._compiled("nvrtcGetProgramLog", program, log)
            fault = next((line for line in log.decode(errors="replace").splitlines() if "error" in line), "")
            raise CudaError(f"the kernels do not compile for {architecture} by {self.compiler}: {fault or failed}")
        code = b" " * self._compiled("nvrtcGetCUBINSize", program)
        self._compiled("nvrtcGetCUBIN", program, code)
        return code

    def module(self, code: bytes) -> Any:
        return self._call("cuModuleLoadData", code)

    def unload(self, module: Any) -> None:
        self._call("cuModuleUnload", module)

    def kernel(self, module: Any, name: str) -> Any:
        return self._call("cuModuleGetFunction", module, name.encode())

    def launch(self, kernel: Any, grid: tuple[int, int], threads: int, arguments: Sequence[Any], stream: Any) -> None:
        """`arguments`: ctypes values, copied by the call."""
        pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(each) for each in arguments))
        self._call("cuLaunchKernel", kernel, *grid, 1, threads, 1, 1, 0, stream, ctypes.addressof(pointers), 0)

    def _call(self, name: str, *arguments: Any) -> Any:
        error, *values = getattr(self._driver, name)(*arguments)
        if int(error):
            if int(error) == _OUT_OF_MEMORY:
                size = f" {arguments[0] / 1e6:.0f} MB" if name.startswith("cuMemAlloc") else " that"
                raise OutOfMemory(
                    f"the GPU has no room for{size} ({name}): plans for fewer rows or positions take less "
                    "(max_batch, max_beams, capacity), and other programs may hold memory"
                )
            raise CudaError(f"{name} failed: {getattr(error, 'name', error)}")
        return values[0] if len(values) == 1 else values

    def _compiled(self, name: str, *arguments: Any) -> Any:
        error, *values = getattr(self._nvrtc, name)(*arguments)
        if int(error):
            raise CudaError(f"{name} failed: {getattr(error, 'name', error)}")
        return values[0] if len(values) == 1 else values
