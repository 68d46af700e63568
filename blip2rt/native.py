"""Import blip2rt._native, the C++ core (engines/), and declare its types."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from .errors import BackendError
from .install_hints import pip_install

if TYPE_CHECKING:
    from collections.abc import Mapping

    from . import _native


class Core(Protocol):
    """The module blip2rt._native, as in _native.pyi."""

    Batcher: type[_native.Batcher]
    Chat: type[_native.Chat]
    Generation: type[_native.Generation]
    Generator: type[_native.Generator]
    GraphError: type[_native.GraphError]
    Resize: type[_native.Resize]
    Runtime: type[_native.Runtime]
    SearchBatch: type[_native.SearchBatch]
    Session: type[_native.Session]
    Submitted: type[_native.Submitted]
    Vocabulary: type[_native.Vocabulary]

    def check_graph(self, graph_path: str, files: Mapping[str, int] | None = None) -> None: ...
    def kernels(self) -> tuple[str, dict[str, str]]: ...
    def processor_kernels(self) -> list[str]: ...


if TYPE_CHECKING:
    _core: Core = _native  # mypy compares both


def native() -> Core:
    """Return blip2rt._native. A source folder without it uses the installed package's."""
    name = "blip2rt._native"
    try:
        return cast("Core", importlib.import_module(name))
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
    folders = [str(Path(entry or ".") / "blip2rt") for entry in sys.path]
    spec = importlib.machinery.PathFinder.find_spec(name, folders)
    if spec is None or spec.loader is None:
        raise BackendError(f"blip2rt's native core is not built for this Python: {pip_install()}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return cast("Core", sys.modules.setdefault(name, module))
