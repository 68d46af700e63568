"""The machine: its description and how fast it reads files that are in memory, measured with numpy."""

import contextlib
import os
import platform
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..backends.ort import cores as cores
from ..native import native
from ..system import peak_memory


def describe() -> dict[str, Any]:
    """Return processor, cores, memory, system, versions, and the kernels of the native core for the processor."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version()}
    for package in ("blip2rt", "onnxruntime", "onnxruntime-gpu", "numpy", "pillow"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    hardware = {"processor": _processor(), "architecture": platform.machine(), "cores": cores()}
    software = {"system": platform.platform(), "versions": versions, "kernels": native.processor_kernels()}
    return {**hardware, "memory_bytes": proc_bytes("/proc/meminfo", "MemTotal"), **software}


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    with contextlib.suppress(OSError):  # a Jetson, a Raspberry Pi
        return Path("/proc/device-tree/model").read_text().strip("\0\n")
    return platform.processor() or "unknown"


def proc_bytes(file: str, key: str) -> int | None:
    """Return a value in kB of a file such as /proc/meminfo, in bytes."""
    with contextlib.suppress(OSError):
        for line in Path(file).read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return None


def peak_rss() -> int:
    """The peak resident memory of this process, in bytes."""
    peak = proc_bytes("/proc/self/status", "VmHWM")
    return peak_memory() if peak is None else peak


def drop_cached(folder: Path) -> bool:
    """Drop a folder's files from the page cache; return False on systems without this."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                with contextlib.suppress(OSError):
                    os.fsync(file.fileno())  # dirty pages would stay cached
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


class LinearRead:
    """A linear read of files with several threads, each a part: the least time of a step that uses all their bytes."""

    def __init__(self, files: Iterable[Path], threads: int) -> None:
        mapped = [np.memmap(path, np.uint8, "r") for path in files]
        self.bytes = sum(each.size for each in mapped)
        words = [each[: each.size // 8 * 8].view(np.int64) for each in mapped]
        self._parts = list(zip(*(np.array_split(each, threads) for each in words), strict=True))
        self._pool = ThreadPoolExecutor(threads)

    def seconds(self) -> float:
        """Read once and return the seconds."""
        start = time.perf_counter()
        list(self._pool.map(lambda part: [np.bitwise_or.reduce(each) for each in part], self._parts))
        return time.perf_counter() - start
