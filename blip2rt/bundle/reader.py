"""Bundles on disk, which the core reads and checks (engines/bundle). Loads no graph."""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError
from ..install_hints import install_nano
from ..native import native
from .manifest import Manifest, from_json
from .names import MANIFEST

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

    def readable_files(self, component: str) -> dict[str, int]:
        """The files that a component's graph may read, by their names in its folder, with their sizes."""
        sizes = {name: entry.size for name, entry in (self.manifest.files or {}).items()}
        return native.readable_files(self.manifest.components[component].graph, sizes)

    def output_shapes(self, component: str) -> dict[str, list[int]]:
        """The shapes of a component's outputs, -1 for a free axis."""
        outputs = self.manifest.components[component].outputs
        return {each.name: [axis if isinstance(axis, int) else -1 for axis in each.shape] for each in outputs}

    def checked_graph(self, component: str) -> Path:
        """The path of a component's graph. Raises BundleError if it is damaged or does what graphs may not do."""
        graph = self.graph(component)
        native.check_graph(str(graph), self.readable_files(component), self.trusted_graphs)
        return graph

    def check_parts(self) -> None:
        """Raise BundleError with every graph, or else every tokenizer, that a model of this bundle would reject."""
        native.check_parts(os.fsencode(self.path), self.trusted_graphs)

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


def read(path: str | os.PathLike[str], *, tensors: bool = False) -> Bundle:
    """Read and check a bundle's manifest and the sizes of its files.

    tensors: compare the inputs and outputs of every graph with the manifest, too.
    Raises BundleError: no bundle there, a newer format version, faults in the manifest, and all missing or changed
    files at once.
    """
    if not isinstance(path, str | os.PathLike):
        raise BundleError(f"a bundle is {path!r}: give its folder's path")
    return Bundle(Path(path), from_json(native.read_bundle(os.fsencode(Path(path)), tensors=tensors)))


def read_manifest(folder: Path) -> Manifest:
    """Read and check a bundle's manifest, and no other file. Raises BundleError."""
    return from_json(native.read_bundle(os.fsencode(folder), files=False))


def verify(path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> Bundle:
    """`read`, then check the sha256 of every file, and of the manifest if it has a checksum.

    `progress(bytes_done, bytes_total)` is called during hashing. Raises BundleError with every altered file.
    """
    bundle, done = read(path), 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(done, bundle.size)

    native.verify_bundle(os.fsencode(bundle.path), advance)
    return bundle
