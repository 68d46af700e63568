"""Merges indexes into one: `blip2rt merge`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ..bundle.atomic import AtomicFolder
from ..errors import OptionError, names_file
from . import index_manifest
from .caption_search import read_table, write_captions
from .catalog import Catalog, File
from .index import Index
from .vectors import BLOCK


def merge(parts: Sequence[Index], out: Path, captions: Path | None, report: Callable[[str], None]) -> int:
    """Write the index of all parts' pictures and return their number. captions: a table of them, or None."""
    root, model = Path(os.path.commonpath([os.path.realpath(part.root) for part in parts])), parts[0].model
    with names_file(out), AtomicFolder(out) as atomic:
        index_manifest.write(atomic.folder, root, index_manifest.fields_of(model.bundle), out)
        with Index.open(atomic.folder, model, write=True) as merged:
            report(f"copying {sum(map(len, parts)):,} pictures")
            merged.catalog.fill(file for part in parts for file in _copy_vectors(part, merged))
            report("building the shortlist")
            merged.refresh()
            if captions is not None:
                report("indexing the captions")
                write_captions(atomic.folder, _by_row(merged.catalog, captions, root))
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


def _by_row(catalog: Catalog, captions: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Yield the captions of pictures that are in the index. Raises OptionError if none is."""
    seen = np.zeros(catalog.row_count, np.bool_)
    for name, text in read_table(captions):
        real = os.path.join(os.path.realpath(os.path.dirname(name)), os.path.basename(name))
        file = catalog.by_path(os.path.relpath(real, root))
        if file is not None and not seen[file.row]:
            seen[file.row] = True
            yield file.row, text
    if not seen.any():
        fix = "its paths are relative to the folder in which it was written: run the command there"
        raise OptionError(f"--captions {str(captions)!r} has none of the index's pictures: {fix}")
