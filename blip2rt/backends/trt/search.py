"""The search on the device: the kernels of engines/search/kernels.cu and the memory of a SearchBatch."""

from __future__ import annotations

import ctypes
import logging
import struct
import weakref
from contextlib import suppress
from typing import Any

import numpy as np

from ...errors import BackendError
from ...native import native
from .cache import PlanCache
from .cuda import Cuda, CudaError
from .lane import Lane

THREADS = 256  # per block
LAYOUT = "=qqqqqqiiii"  # struct GenerationParameters in kernels.cu: addresses of the search state
_LAST_OFFSET = 56  # of its field `last`, in bytes
_log = logging.getLogger("blip2rt")


class Kernels:
    """The loop's kernels, loaded on this GPU."""

    NAMES = ("scatter", "choose", "reorder", "spread")

    def __init__(self, cuda: Cuda, code: bytes) -> None:
        self._cuda = cuda
        module = cuda.module(code)
        self._kernels = {name: cuda.kernel(module, name) for name in self.NAMES}
        weakref.finalize(self, _unload, cuda, module).atexit = False

    @classmethod
    def compiled(cls, cuda: Cuda, cache: PlanCache) -> Kernels:
        """The kernels, compiled once for this GPU and cached beside the plans."""
        source, headers = native.kernels()
        origin = {"compiler": cuda.compiler, "architecture": cuda.architecture, "sources": [source, headers]}
        path = cache.find("kernels", origin)
        if path is None:
            _log.warning("compiling the search for %s, once; this may take a minute", cuda.architecture)
            path = cache.store("kernels", origin, cuda.compile(source, headers, cuda.architecture))
        return cls(cuda, path.read_bytes())

    def launch(self, name: str, grid: tuple[int, int], stream: Any, *arguments: int | ctypes.c_int) -> None:
        """Launch a kernel. Pass addresses and 64-bit counts as int, 32-bit counts as c_int."""
        values = [ctypes.c_int64(each) if isinstance(each, int) else each for each in arguments]
        self._cuda.launch(self._kernels[name], grid, THREADS, values, stream)


def _unload(cuda: Cuda, module: Any) -> None:
    with suppress(CudaError):  # a failed device may reject every call
        cuda.activate()
        cuda.unload(module)


class SearchMemory:
    """A SearchBatch's memory on the device, with the buffers that the kernel `choose` needs."""

    def __init__(self, lane: Lane, batch: Any, vocab: int, vocabulary: Any) -> None:
        plan = batch.plan
        self._lane, self._batch = lane, batch
        self.images, self.beams = plan["images"], plan["beams"]
        self.answers = len(self.images)
        rows = self.answers * self.beams
        memory = batch.memory
        self._blocks = lane.buffer("blocks", memory.nbytes)
        lane.copy_in(self._blocks, memory)
        text = (0, 0)
        if plan["reads_text"]:
            ends = lane.upload("vocabulary.ends", vocabulary.ends)
            text = (ends.address, lane.upload("vocabulary.bytes", vocabulary.bytes).address)
        draws = (0, 0, 0)
        if plan["samples"]:
            draws = (
                lane.buffer("draws.rows", rows * plan["draw_bytes"]),
                lane.buffer("draws.weights", rows * vocab * 4),
                lane.buffer("draws.sums", rows * -(-vocab // 64) * 8),
            )
        packed = struct.pack(LAYOUT, *text, self._blocks, *draws, plan["stride"], self.beams, 0, 0)
        lane.upload("plan", np.frombuffer(packed, np.uint8))

    def mark_last_step(self) -> None:
        """Make the next step the last one."""
        self._lane.copy_in(self._lane.address("plan") + _LAST_OFFSET, np.array([1], np.int32))

    def fetch(self) -> None:
        """Wait for the device and copy the search state back into the batch. Raises BackendError."""
        self._lane.copy_out(self._batch.memory, self._blocks)
        self._lane.wait()
        try:
            self._batch.check()
        except RuntimeError as error:
            raise BackendError(f"generation failed: {error}") from error
