"""Every call of backends.trt.cuda by the installed cuda-bindings, to the driver that stands in (libcuda.c).

`python -m tests.trt.native.every_call [RELEASES]`, with the folder of its libcuda.so.1 in LD_LIBRARY_PATH. Prints which
release of cuda-bindings it was, and fails where that is none of RELEASES, such as "<13".
"""

import contextlib
import ctypes
import importlib
import sys
from importlib import metadata
from typing import Any

from packaging.specifiers import SpecifierSet

from blip2rt.backends.trt.cuda import Cuda, CudaError, OutOfMemory


class Nvrtc:
    """Of the compiler, only its version is asked for here."""

    def nvrtcVersion(self) -> tuple[int, int, int]:
        return 0, 12, 4


def main() -> None:
    stand_in = ctypes.CDLL("libcuda.so.1")
    cuda = Cuda(importlib.import_module("cuda.bindings.driver"), Nvrtc())
    assert cuda.driver == (13, 1) and cuda.compute_capability == (8, 7)
    stream = cuda.stream()
    memory(cuda, stream)
    event = cuda.event()
    cuda.record(event, stream)
    cuda.wait_event(event)
    cuda.destroy_event(event)
    module = cuda.module(b"code")
    kernel = cuda.kernel(module, "kernel")
    arguments: list[Any] = [ctypes.c_int(7), ctypes.c_float(0.5)]
    cuda.launch(kernel, (3, 2), 64, arguments, stream)
    assert stand_in.standInLaunched() == 1
    cuda.begin_capture(stream)
    cuda.launch(kernel, (3, 2), 64, arguments, stream)
    graph = cuda.end_capture(stream)
    assert stand_in.standInLaunched() == 1
    for _ in range(3):
        cuda.launch_graph(graph, stream)
    assert stand_in.standInLaunched() == 4
    cuda.destroy_graph(graph)
    cuda.unload(module)
    cuda.destroy_stream(stream)
    assert stand_in.standInAlive() == 0
    version = metadata.version("cuda-bindings")
    assert version in SpecifierSet("".join(sys.argv[1:])), f"cuda-bindings is {version}, not {sys.argv[1]}"
    print(f"cuda-bindings {version}: ok")


def memory(cuda: Cuda, stream: Any) -> None:
    device, host = cuda.allocate(64), cuda.allocate_host(64)
    cuda.fill(device, 0x3F800000, 16, stream)
    cuda.download(host, device, 64, stream)
    cuda.wait(stream)
    assert list((ctypes.c_float * 16).from_address(host)) == [1.0] * 16
    words = (ctypes.c_int * 16)(*range(16))
    other = cuda.allocate(64)
    cuda.upload(other, ctypes.addressof(words), 64, stream)
    cuda.copy(device, other, 64, stream)
    cuda.download(host, device, 64, stream)
    cuda.free(other)
    cuda.wait(stream)
    assert list((ctypes.c_int * 16).from_address(host)) == list(range(16))
    cuda.free(device)
    cuda.free_host(host)
    for wrong, kind in ((lambda: cuda.allocate(1 << 41), OutOfMemory), (lambda: cuda.free(0), CudaError)):
        with contextlib.suppress(kind):
            wrong()
            raise AssertionError(kind)


if __name__ == "__main__":
    main()
