"""Stores the kernels that tensorrt-rtx compiles at run time beside the plan, for the next process.

Only tensorrt-rtx compiles at run time; tensorrt compiles everything when it builds the plan.
"""

import logging
import threading
from pathlib import Path
from typing import Any

from ...bundle.atomic import write_file

_log = logging.getLogger("blip2rt")


class KernelCache:
    """The run-time kernels of one plan, shared by all of its contexts."""

    def __init__(self, trt: Any, engine: Any, plan: Path) -> None:
        self._file = plan.with_suffix(".kernels")
        self._lock = threading.RLock()  # the garbage collector may release a lane while this thread writes
        self.config = engine.create_runtime_config()  # passed to every execution context
        self.config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # Compile before the first run of a shape: a kernel compiled later would be missing from a captured graph.
        eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        self.config.dynamic_shapes_kernel_specialization_strategy = eager
        self._kernels = self.config.create_runtime_cache()
        self._stored = self._read()
        self.config.set_runtime_cache(self._kernels)

    @staticmethod
    def is_supported(trt: Any) -> bool:
        """Whether this TensorRT compiles kernels at run time."""
        return hasattr(trt, "DynamicShapesKernelSpecializationStrategy")

    def save(self) -> None:
        """Write the kernels if they have changed. Never fails: at worst the next process compiles them again."""
        with self._lock:
            data = bytes(self._kernels.serialize())
            if data == self._stored:
                return
            try:
                write_file(self._file, data)
                self._stored = data
            except OSError as error:
                _log.debug("cannot save the kernels to %s: %s", self._file, error)

    def _read(self) -> bytes:
        """The stored kernels; empty if there are none or they belong to another GPU or driver."""
        try:
            data = self._file.read_bytes()
        except OSError:
            return b""
        return data if self._kernels.deserialize(data) else b""
