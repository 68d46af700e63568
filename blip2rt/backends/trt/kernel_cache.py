"""What tensorrt-rtx compiles on the device for the shapes that it meets, kept beside the plan for the next process.

tensorrt compiles when it builds, and has nothing of this. Knows TensorRT's runtime configuration, nothing of tensors.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

from ...bundle.atomic import write_file

_log = logging.getLogger("blip2rt")


class KernelCache:
    """The kernels of one plan, in a file of its name. All contexts of the plan share them."""

    def __init__(self, trt: Any, engine: Any, plan: Path) -> None:
        self._file = plan.with_suffix(".kernels")
        self._lock = threading.RLock()  # the garbage collector may give back a lane while this writes
        self.config = engine.create_runtime_config()  # what contexts are made with
        self.config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # Compiled before the first run of a shape: a kernel that came later would not be in a captured graph.
        eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        self.config.dynamic_shapes_kernel_specialization_strategy = eager
        self._kernels = self.config.create_runtime_cache()
        self._kept = self._read()
        self.config.set_runtime_cache(self._kernels)

    @staticmethod
    def known(trt: Any) -> bool:
        """Whether this TensorRT compiles on the device."""
        return hasattr(trt, "DynamicShapesKernelSpecializationStrategy")

    def keep(self) -> None:
        """Write the kernels, where there are others than were read. Never fails: they are compiled again."""
        with self._lock:
            data = bytes(self._kernels.serialize())
            if data == self._kept:
                return
            try:
                write_file(self._file, data)
                self._kept = data
            except OSError as error:
                _log.debug("cannot keep the kernels in %s: %s", self._file, error)

    def _read(self) -> bytes:
        """The kernels of an earlier process; nothing where there are none, or they are another GPU's or driver's."""
        try:
            data = self._file.read_bytes()
        except OSError:
            return b""
        return data if self._kernels.deserialize(data) else b""
