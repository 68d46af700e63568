"""The CUDA driver calls that the backend trt needs: memory, streams, CUDA graphs, and kernels compiled by NVRTC.

Wraps NVIDIA's cuda-bindings, whose functions return (error, values...).
"""

import ctypes
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import BackendError
from ...install_hints import pip_install

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream, which TensorRT's builder uses
_NO_TIMING = 2  # CU_EVENT_DISABLE_TIMING
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate during a capture
_MAJOR, _MINOR = 75, 76  # CUdevice_attribute: compute capability
_OUT_OF_MEMORY = 2


class CudaError(BackendError):
    """A driver or NVRTC call failed."""


class OutOfMemory(CudaError):
    """The GPU is out of memory."""


def load_bindings() -> tuple[Any, Any]:
    """The modules driver and nvrtc of cuda-bindings. Raises BackendError if they are not installed."""
    try:
        return importlib.import_module("cuda.bindings.driver"), importlib.import_module("cuda.bindings.nvrtc")
    except ImportError as error:
        raise BackendError(
            f"the TensorRT backend needs cuda-bindings ({error}): {pip_install('trt-cu12')}, or trt-cu13 if "
            "`blip2rt doctor` reports a driver for CUDA 13"
        ) from error


class Cuda:
    """The first GPU. Addresses are ints; streams, graphs and kernels are objects of cuda-bindings."""

    def __init__(self, driver: Any, nvrtc: Any) -> None:
        """Raises BackendError without a driver or GPU, or if the driver is older than NVRTC."""
        self._driver, self._nvrtc = driver, nvrtc
        try:
            self._call("cuInit", 0)
        except (ImportError, OSError, RuntimeError) as error:
            raise CudaError(
                f"no NVIDIA driver is installed ({' '.join(str(error).split())}): run blip2rt doctor"
            ) from None
        version = self._call("cuDriverGetVersion")
        self.driver = (version // 1000, version % 1000 // 10)
        compiler = self._compiled("nvrtcVersion")
        if self.driver < (compiler[0], 0):
            older = f", or {pip_install('trt-cu12')}" if self.driver >= (12, 0) else ""
            raise CudaError(
                f"the driver supports CUDA up to {self.driver[0]}.{self.driver[1]}, but NVRTC is of CUDA "
                f"{compiler[0]}.{compiler[1]}: update the driver{older}"
            )
        device = self._call("cuDeviceGet", 0)
        self.compute_capability: tuple[int, int] = (self._attribute(_MAJOR, device), self._attribute(_MINOR, device))
        self._context = self._call("cuDevicePrimaryCtxRetain", device)  # the context that TensorRT uses
        self.activate()

    def _attribute(self, number: int, device: Any) -> int:
        """Read a device attribute; some releases of cuda-bindings do not accept a plain number."""
        return int(self._call("cuDeviceGetAttribute", self._driver.CUdevice_attribute(number), device))

    def activate(self) -> None:
        """Make the GPU current for this thread."""
        self._call("cuCtxSetCurrent", self._context)

    # Memory

    def allocate(self, size: int) -> int:
        """Allocate `size` bytes on the device. Raises OutOfMemory."""
        return int(self._call("cuMemAlloc", size))

    def free(self, address: int) -> None:
        self._call("cuMemFree", address)

    def allocate_host(self, size: int) -> int:
        """Allocate page-locked host memory, which the GPU can write asynchronously."""
        return int(self._call("cuMemAllocHost", size))

    def free_host(self, address: int) -> None:
        self._call("cuMemFreeHost", address)

    def fill(self, address: int, word: int, count: int, stream: Any) -> None:
        """Set `count` words of 4 bytes."""
        self._call("cuMemsetD32Async", address, word, count, stream)

    def upload(self, address: int, host: int, size: int, stream: Any) -> None:
        """Copy from pageable host memory, which is read before the call returns."""
        self._call("cuMemcpyHtoDAsync", address, host, size, stream)

    def download(self, host: int, address: int, size: int, stream: Any) -> None:
        """Copy to the host; complete once the stream has been synchronized."""
        self._call("cuMemcpyDtoHAsync", host, address, size, stream)

    def copy(self, address: int, source: int, size: int, stream: Any) -> None:
        """Copy within device memory."""
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
        """Record the following work on the stream instead of running it."""
        self._call("cuStreamBeginCapture", stream, self._driver.CUstreamCaptureMode(_THREAD_LOCAL))

    def end_capture(self, stream: Any) -> Any:
        """The recorded graph, ready to launch. Raises CudaError if it contains work that cannot be captured."""
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
    def architecture(self) -> str:
        return "sm_{}{}".format(*self.compute_capability)

    @property
    def compiler(self) -> str:
        return "nvrtc {}.{}".format(*self._compiled("nvrtcVersion"))

    def compile(self, source: str, headers: Mapping[str, str], architecture: str) -> bytes:
        """Compile CUDA C++ for an architecture such as "sm_87"; needs no GPU. Raises CudaError with the first error."""
        texts, names = [text.encode() for text in headers.values()], [name.encode() for name in headers]
        program = self._compiled("nvrtcCreateProgram", source.encode(), b"kernels.cu", len(headers), texts, names)
        try:
            return self._code(program, architecture)
        finally:
            self._compiled("nvrtcDestroyProgram", program)

    def _code(self, program: Any, architecture: str) -> bytes:
        # --fmad=false: the same results as the CPU's loop.
        options = [f"--gpu-architecture={architecture}".encode(), b"-std=c++17", b"-default-device", b"--fmad=false"]
        failed = int(self._nvrtc.nvrtcCompileProgram(program, len(options), options)[0])
        if failed:
            log = b" " * self._compiled("nvrtcGetProgramLogSize", program)
            self._compiled("nvrtcGetProgramLog", program, log)
            fault = next((line for line in log.decode(errors="replace").splitlines() if "error" in line), "")
            raise CudaError(f"{self.compiler} cannot compile the kernels for {architecture}: {fault or failed}")
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
        """Launch a kernel. arguments: ctypes values, copied by the call."""
        pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(each) for each in arguments))
        self._call("cuLaunchKernel", kernel, *grid, 1, threads, 1, 1, 0, stream, ctypes.addressof(pointers), 0)

    def _call(self, name: str, *arguments: Any, module: Any = None) -> Any:
        error, *values = getattr(module or self._driver, name)(*arguments)
        if int(error):
            if int(error) == _OUT_OF_MEMORY and module is None:
                size = f" for {arguments[0] / 1e6:.0f} MB" if name.startswith("cuMemAlloc") else ""
                raise OutOfMemory(
                    f"the GPU is out of memory{size} ({name}): build smaller plans (max_batch, max_beams, capacity) "
                    "or close other programs that use it"
                )
            raise CudaError(f"{name} failed: {getattr(error, 'name', error)}")
        return values[0] if len(values) == 1 else values

    def _compiled(self, name: str, *arguments: Any) -> Any:
        return self._call(name, *arguments, module=self._nvrtc)
