"""Read a bundle: the manifest and file sizes at once, hashes on demand. Opens no graph.

Standard library only.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BundleError
from ..install_hints import install_nano
from .checksum import is_intact, sha256_of
from .faults import manifest_faults
from .manifest import Manifest, from_json
from .names import FORMAT, FORMAT_VERSION, MANIFEST
from .regular_files import read_bounded

MAX_MANIFEST_BYTES = 4 << 20
CHECKOUT_NANO = Path(__file__).parents[1] / "models" / "nano"  # in a checkout and in an editable installation


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose manifest and file sizes have been checked."""

    path: Path
    manifest: Manifest
    trusted_graphs: bool = False  # graphs may have operators that exports do not write

    def has(self, *components: str) -> bool:
        """Whether every one of `components` is in the bundle."""
        return all(name in self.manifest.components for name in components)

    def graph(self, component: str) -> Path:
        """Path of a component's ONNX graph."""
        return self.path / self.manifest.components[component].graph

    def file(self, name: str) -> Path:
        """Path of a file of the bundle."""
        return self.path / name

    @property
    def size(self) -> int:
        """Bytes of all files except the manifest."""
        return sum(entry.size for entry in (self.manifest.files or {}).values())


def embedded() -> Path:
    """The folder of nano: the checkout's, or else the installed package blip2rt-nano's. Raises BundleError."""
    if (CHECKOUT_NANO / MANIFEST).is_file():
        return CHECKOUT_NANO
    spec = importlib.util.find_spec("blip2rt_nano")  # finds, does not import
    for folder in (spec and spec.submodule_search_locations) or ():
        if Path(folder, "nano", MANIFEST).is_file():
            return Path(folder, "nano")
    raise BundleError(f"nano, the embedded model, is not installed: {install_nano()}, or name a bundle")


def read(path: str | os.PathLike[str]) -> Bundle:
    """Read and check a bundle's manifest and the sizes of its files; opens no graph.

    Raises BundleError: no bundle there, a newer format version, faults in the manifest, and all missing or
    changed files at once.
    """
    if not isinstance(path, str | os.PathLike):
        raise BundleError(f"a bundle is {path!r}: give its folder's path")
    folder = Path(path)
    manifest = read_manifest(folder)
    faults = _size_faults(folder, manifest)
    if faults:
        raise BundleError(f"bundle {folder} is not whole: {'; '.join(faults)}: copy or export it again")
    return Bundle(folder, manifest)


def read_manifest(folder: Path) -> Manifest:
    """Read and check a bundle's manifest, and no other file. Raises BundleError."""
    data = _read_json(folder)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise BundleError(f'{folder / MANIFEST} is not the manifest of a blip2rt bundle (no "format": "{FORMAT}")')
    version = data.get("format_version")
    if type(version) is not int or version < 1:
        raise BundleError(f"{folder / MANIFEST}: format_version is {version!r}, not a whole number from 1 up")
    if version > FORMAT_VERSION:
        raise BundleError(
            f"{folder} has bundle format version {version}, this blip2rt reads versions up to {FORMAT_VERSION}: "
            "install a newer blip2rt, or export the bundle again with this one"
        )
    try:
        manifest = from_json(data)
    except ValueError as error:
        raise BundleError(f"{folder / MANIFEST} is damaged: {error}") from None
    faults = manifest_faults(manifest)
    if faults:
        raise BundleError(f"{folder / MANIFEST} is damaged: {'; '.join(faults)}")
    return manifest


def verify(path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> Bundle:
    """`read`, then check the sha256 of every file, and of the manifest if it has a checksum.

    `progress(bytes_done, bytes_total)` is called during hashing. Raises BundleError with every altered file.
    """
    bundle = read(path)
    done, altered = 0, [] if is_intact(bundle.file(MANIFEST).read_bytes()) is not False else [MANIFEST]

    def advance(size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(done, bundle.size)

    for name, entry in sorted((bundle.manifest.files or {}).items()):
        try:
            if sha256_of(bundle.file(name), advance).hex() != entry.sha256:
                altered.append(name)
        except OSError as error:
            raise BundleError(f"cannot read {bundle.file(name)}: {error.strerror or error}") from None
    if altered:
        raise BundleError(
            f"bundle {bundle.path} is altered: the sha256 of {', '.join(altered)} differs from the manifest's: "
            "copy or export it again"
        )
    return bundle


def _read_json(folder: Path) -> Any:
    file = folder / MANIFEST
    try:
        if folder.is_file():
            raise BundleError(f"{folder} is a file; a bundle is the folder that holds {MANIFEST}")
        if not folder.exists():
            raise BundleError(f"no bundle at {folder}: there is no such folder")
        if not file.is_file():
            raise BundleError(f"no bundle at {folder}: the folder has no {MANIFEST}")
        return json.loads(read_bounded(file, MAX_MANIFEST_BYTES).decode())
    except OSError as error:
        raise BundleError(f"cannot read {file}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file} is damaged: not JSON ({error})") from None


def _size_faults(folder: Path, manifest: Manifest) -> list[str]:
    faults = []
    for name, entry in sorted((manifest.files or {}).items()):
        try:
            size = (folder / name).stat().st_size if (folder / name).is_file() else None
        except OSError as error:
            faults.append(f"{name} cannot be read: {error.strerror or error}")
            continue
        if size is None:
            faults.append(f"{name} is missing")
        elif size != entry.size:
            faults.append(f"{name} has {size} bytes instead of {entry.size}")
    return faults
