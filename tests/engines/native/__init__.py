"""Shared by the tests of the native core: its classes, and the ONNX Runtime of the process."""

import importlib.util
from functools import cache
from pathlib import Path

from blip2rt.native import native

native.kernel_levels()  # finds the core of an installed package

from blip2rt._native import Batcher, Chat, Generator, GraphError, Runtime, Session, Vocabulary, check_graph

__all__ = ["Batcher", "Chat", "Generator", "GraphError", "Runtime", "Session", "Vocabulary"]
__all__ += ["check_graph", "library_path", "runtime"]


def library_path() -> str:
    spec = importlib.util.find_spec("onnxruntime")
    assert spec is not None and spec.origin is not None
    return str(next((Path(spec.origin).parent / "capi").glob("libonnxruntime.*so*")))


@cache
def runtime() -> Runtime:
    return Runtime(library_path())
