"""What the tests of the native core share: its classes, and the one ONNX Runtime of the process."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

from blip2rt.native import native

native()  # finds the core of an installed package, beside whose source folder the tests run

from blip2rt._native import Batcher, Chat, Generator, GraphError, Runtime, Session, Vocabulary, check_graph

__all__ = ["Batcher", "Chat", "Generator", "GraphError", "Runtime", "Session", "Vocabulary", "check_graph",
           "library_path", "runtime"]  # fmt: skip


def library_path() -> str:
    spec = importlib.util.find_spec("onnxruntime")
    assert spec is not None and spec.origin is not None
    return str(next((Path(spec.origin).parent / "capi").glob("libonnxruntime.*so*")))


@cache
def runtime() -> Runtime:
    return Runtime(library_path())
