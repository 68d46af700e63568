"""Merges indexes into one: `blip2rt merge`."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..bundle.atomic import AtomicFolder
from ..errors import OptionError, names_file
from ..object_storage import Url
from . import index_manifest
from .catalog import File
from .index import Index
from .vectors import BLOCK


def merge(parts: Sequence[Index], out: Path, report: Callable[[str], None]) -> int:
    """Write the index of all parts' pictures and return their number. Raises OptionError for an index of a URL."""
    for part in parts:
        if isinstance(part.root, Url):
            raise OptionError(f"{part.path} is an index of {part.root}: index the URL that has all pictures instead")
    root, model = Path(os.path.commonpath([os.path.realpath(part.root) for part in parts])), parts[0].model
    with names_file(out), AtomicFolder(out) as atomic:
        index_manifest.write(atomic.folder, root, index_manifest.fields_of(model.bundle), out)
        with Index.open(atomic.folder, model, write=True) as merged:
            report(f"copying {sum(map(len, parts)):,} pictures")
            merged.catalog.put(file for part in parts for file in _copy_vectors(part, merged))
            report("building the shortlist")
            merged.refresh()
            count = len(merged)
        atomic.finish()
    return count


def _copy_vectors(part: Index, merged: Index) -> Iterator[File]:
    """Copy the vectors of a part's pictures behind those already there, and yield the pictures' new entries."""
    folder = os.path.relpath(os.path.realpath(part.root), merged.root)
    for start in range(0, len(rows := part.used_rows()), BLOCK):
        old = rows[start : start + BLOCK]
        first, files = len(merged.vectors), part.catalog.at(old.tolist())
        merged.vectors.write(range(first, first + len(old)), part.vectors.read(old))
        for row, file in enumerate((files[row] for row in old.tolist()), first):
            yield file._replace(row=row, path=os.path.normpath(os.path.join(folder, file.path)))
