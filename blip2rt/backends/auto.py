"""The faster of the core and ONNX Runtime for a bundle on this processor; see prefers_executor in engines/executor."""

from __future__ import annotations

import contextlib
from typing import Any

from ..native import native
from . import ort


class Backend(ort.Backend):
    """A bundle's graphs, each opened at its first use. ONNX Runtime, if there is one, opens what the core cannot."""

    def _open_runtime(self) -> Any:
        precisions = [each.precision for each in self._bundle.manifest.components.values()]
        return None if native.prefers_executor(precisions) else super()._open_runtime()

    def _open_session(self, component: str, runtime: Any) -> Any:
        try:
            return super()._open_session(component, runtime)
        except RuntimeError:
            if runtime is None and (other := super()._open_runtime()) is not None:
                with contextlib.suppress(RuntimeError):  # the core's own error tells as much
                    return super()._open_session(component, other)
            raise
