"""Many pictures: captions for whole folders, an index of embeddings, search by text or picture.

    from blip2rt.gallery import Index

    index = Index.open("photos.index")
    for hit in index.search("a dog on a beach", 10):
        print(hit.score, hit.path)

Importing this package loads none of its modules.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .index import Hit, Index
    from .progress import Counts
    from .vectors import one_vector

__all__ = ["Counts", "Hit", "Index", "one_vector"]
_MODULES = {"Counts": "progress", "one_vector": "vectors"}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'index')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
