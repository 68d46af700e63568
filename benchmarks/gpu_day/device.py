"""Opens the card through the driver, and measures its memory bandwidth."""

import time
from contextlib import closing
from typing import Any

from blip2rt.backends.trt import cuda as cuda_module
from blip2rt.backends.trt import cuda_libraries
from blip2rt.backends.trt.cache import PlanCache, default_folder
from blip2rt.backends.trt.cuda import Cuda
from blip2rt.backends.trt.lane import Lane
from blip2rt.backends.trt.search import Kernels
from blip2rt.errors import BackendError

from .day import Skipped

_REPEATS = 7


def open_cuda() -> Cuda:
    """The first GPU. Raises Skipped without a GPU, driver or bindings."""
    cuda_libraries.preload()  # so that NVRTC from a pip package is found
    try:
        return Cuda(*cuda_module.load_bindings())
    except BackendError as error:
        raise Skipped(str(error)) from error


def open_kernels(cuda: Cuda) -> tuple[Kernels, dict[str, Any]]:
    """The kernels, compiled for the card or read from the cache, and facts about the compilation."""
    started = time.perf_counter()
    kernels = Kernels.compiled(cuda, PlanCache(default_folder()))
    seconds = round(time.perf_counter() - started, 2)
    return kernels, {"compiler": cuda.compiler, "architecture": cuda.architecture, "seconds": seconds}


def lane(cuda: Cuda) -> closing[Lane]:
    return closing(Lane(cuda))


def bandwidth(cuda: Cuda, size: int) -> float:
    """Memory bandwidth in bytes per second, measured by copying `size` bytes, each of which is read and written."""
    with lane(cuda) as own:
        source, target = own.buffer("source", size), own.buffer("target", size)
        best = 0.0
        for _ in range(_REPEATS):
            own.wait()
            started = time.perf_counter()
            for _ in range(10):
                cuda.copy(target, source, size, own.stream)
            own.wait()
            best = max(best, 2 * 10 * size / (time.perf_counter() - started))
    return best
