"""Check a bundle's graphs before an engine loads them: which files they may read."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from ..bundle import Bundle
from ..errors import BundleError
from ..native import native


def readable_files(bundle: Bundle, component: str) -> dict[str, int]:
    """The files that a component's graph may read: those of its folder in the manifest, with their sizes in bytes."""
    folder = PurePosixPath(bundle.manifest.components[component].graph).parent
    files = {PurePosixPath(name): entry.size for name, entry in (bundle.manifest.files or {}).items()}
    return {name.name: size for name, size in files.items() if name.parent == folder}


def checked_graph(bundle: Bundle, component: str) -> Path:
    """The path of a component's graph. Raises BundleError if it is damaged or reads other files."""
    graph = bundle.graph(component)
    try:
        native().check_graph(str(graph), readable_files(bundle, component), bundle.trusted_graphs)
    except native().GraphError as error:
        raise rejected(error) from None
    return graph


def rejected(error: Exception) -> BundleError:
    """The core's GraphError as a BundleError."""
    if "trusted_graphs" in str(error):
        return BundleError(str(error))
    return BundleError(f"{error}: download the bundle again from a source you trust")
