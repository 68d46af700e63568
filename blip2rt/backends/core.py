"""The core's executor (engines/executor): the same bundles as ONNX Runtime, without it."""

from __future__ import annotations

from typing import Any

from . import ort


class Backend(ort.Backend):
    """A bundle's graphs, each opened at its first use."""

    def _open_runtime(self) -> Any:
        return None
