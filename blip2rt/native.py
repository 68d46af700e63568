"""Finds blip2rt._native, the C++ core (engines/)."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from .errors import BackendError


def native() -> ModuleType:
    """blip2rt._native; where this package is a source folder without it, the installed package's."""
    name = "blip2rt._native"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
    folders = [str(Path(entry or ".") / "blip2rt") for entry in sys.path]
    spec = importlib.machinery.PathFinder.find_spec(name, folders)
    if spec is None or spec.loader is None:
        raise BackendError(
            f"blip2rt's native core is not built for this Python: pip install . in {Path(__file__).parents[1]}"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return sys.modules.setdefault(name, module)
