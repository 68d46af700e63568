"""What a bundle's graphs may read. Knows files and their sizes, nothing about engines."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from ..bundle import Bundle
from ..errors import BundleError
from ..native import native


def readable_files(bundle: Bundle, component: str) -> dict[str, int]:
    """Return the files beside a component's graph that the manifest lists, and their bytes: all that it may read."""
    folder = PurePosixPath(bundle.manifest.components[component].graph).parent
    files = {PurePosixPath(name): entry.size for name, entry in (bundle.manifest.files or {}).items()}
    return {name.name: size for name, size in files.items() if name.parent == folder}


def checked_graph(bundle: Bundle, component: str) -> Path:
    """Return a component's graph. Raises BundleError where it is damaged or asks for what it may not."""
    graph = bundle.graph(component)
    try:
        native().check_graph(str(graph), readable_files(bundle, component))
    except native().GraphError as error:
        raise refused(error) from None
    return graph


def refused(error: Exception) -> BundleError:
    """Return the core's GraphError as ours."""
    return BundleError(f"{error}: get the bundle again from whom you trust")
