"""Brings an index up to date with its folder. Knows the order of things.

A picture with the size and time that it had is left alone; one with other bytes is embedded. Bytes that are known,
under a name that is gone or another one, cost no graph. What is gone from the folder leaves the index, unless its
folder could not be read. A folder without any picture takes none from its index: it may not be mounted.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..errors import Blip2rtError, GalleryError, OptionError
from .ahead import Cell, Pace, cells
from .catalog import Catalog, File
from .lanes import in_order
from .lines import Lines
from .pictures import Fault, Picture, Sources
from .progress import Bar, Counts, Faults, fault_line
from .vectors import Vectors
from .walk import walk

if TYPE_CHECKING:
    from ..backends import Floats
    from ..model import Model

BATCH = 8


class Growing(Protocol):
    """An index, as far as its folder is followed."""

    path: Path
    root: Path
    model: Model
    catalog: Catalog
    vectors: Vectors
    writable: bool

    def refresh(self) -> None: ...


def update(
    index: Growing, pace: Pace | None = None, errors: str | None = None, strict: bool = False, quiet: bool = True
) -> Counts:
    """Walk the root and do what is to be done. quiet: say nothing on stderr."""
    if not index.writable:
        raise OptionError("the index is open for reading: open it with write=True, or by Index.create")
    counts, pace = Counts(), pace or Pace(BATCH, 2)
    sources = sources_of(index.root)
    with ExitStack() as stack:
        stack.enter_context(_lock(index.path))
        bar = Bar(sources, counts, shown=not quiet)
        stack.callback(bar.close)
        faults = Faults(errors, bar, silent=quiet and errors is None)
        stack.callback(faults.close)
        changes = _Changes(index)
        walked = changes.seen(walk(sources))
        decoded = cells(index.model, walked, changes.todo, pace)
        for cell, embeds in in_order(decoded, partial(_embed, index.model), pace.lanes):
            counts.before += cell.done
            for _, fault in cell.faults:
                counts.failed += 1
                if strict:
                    raise Blip2rtError(f"{fault_line(fault)}: mend it, or leave out --strict")
                faults.add(fault)
            counts.made += _put(index, cell, embeds, changes)
            bar.show()
        counts.gone = changes.remove_gone()
        index.refresh()
    return counts


def sources_of(root: Path) -> Sources:
    """Where an index looks for its pictures."""
    return Sources((str(root),), recursive=True)


def _embed(model: Model, cell: Cell[File]) -> Floats | None:
    """Put a cell through the graphs: its image_embeds (B, Q, E), None where nothing is new. Any thread may."""
    if not cell.new:
        return None
    rows = [rgb for _, rgb in cell.rows]
    return np.concatenate([model.embed(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)])


def _put(index: Growing, cell: Cell[File], embeds: Floats | None, changes: _Changes) -> int:
    """Put a cell's vectors and names into the index: first those, then these. Return how many."""
    new = [(i, entry.what) for i, (entry, _) in enumerate(cell.rows) if entry.what is not None]
    if embeds is None:
        return 0
    places = index.catalog.places(len(new))
    index.vectors.write(places, embeds[[i for i, _ in new]])
    made = [file._replace(row=place) for (_, file), place in zip(new, places, strict=True)]
    index.catalog.put(made)
    changes.note(made)
    return len(made)


class _Changes:
    """What differs between a folder and its index."""

    def __init__(self, index: Growing) -> None:
        self._index = index
        self._present = bytearray(index.catalog.rows)  # by place
        self._unread: list[str] = []  # folders that could not be read
        self._met = False  # whether the walk has met anything

    def seen(self, walked: Iterator[Picture | Fault]) -> Iterator[Picture | Fault]:
        """Note what could not be read on the way: what is under it has not gone."""
        for each in walked:
            self._met = True
            if isinstance(each, Fault):
                self._unread.append(os.path.relpath(each.name, self._index.root))
            yield each

    def todo(self, picture: Picture) -> File | Fault | None:
        """The picture as it is, if it is to be embedded."""
        catalog, path = self._index.catalog, os.path.relpath(picture.path, self._index.root)
        known = catalog.named(path)
        try:
            status = os.stat(picture.path)
            if known is not None and (known.size, known.time) == (status.st_size, status.st_mtime_ns):
                self.note([known])
                return None
            digest = _hash(picture.path)
        except OSError as error:
            self.note([known] if known is not None else [])  # what it holds now is not known
            return Fault(picture.name, f"cannot read {picture.name!r}: {error.strerror}")
        if known is not None and known.hash == digest:
            self.note([known])
            catalog.move(known, path, status.st_mtime_ns)
            return None
        return self._same_bytes(File(-1, path, status.st_size, status.st_mtime_ns, digest))

    def _same_bytes(self, file: File) -> File | None:
        """Take over the vectors of a picture with the same bytes, if there is one."""
        same = self._index.catalog.hashed(file.hash)
        if not same:
            return file
        gone = [each for each in same if not os.path.lexists(self._index.root / each.path)]
        if gone:
            self.note(gone[:1])
            self._index.catalog.move(gone[0], file.path, file.time)
            return None
        places = self._index.catalog.places(1)
        self._index.vectors.write(places, self._index.vectors.read([same[0].row]))
        self._index.catalog.put([file._replace(row=places[0])])
        self.note([file._replace(row=places[0])])
        return None

    def note(self, files: Iterable[File]) -> None:
        """These are in the folder. One that changed is noted when it is embedded: it leaves if that fails."""
        for file in files:
            if file.row < len(self._present):
                self._present[file.row] = 1

    def remove_gone(self) -> int:
        """Remove the pictures of the index that the walk did not meet. Return how many.

        Raises GalleryError where the walk met none at all.
        """
        root, path = self._index.root, self._index.path
        if len(self._index.catalog) and not (self._met and root.is_dir()):
            raise GalleryError(f"{root} has no pictures, and its index {path} has: mount the folder, or remove {path}")
        gone = [
            file.row
            for file in self._index.catalog.all()
            if file.row < len(self._present) and not self._present[file.row] and not self._may_be_there(file.path)
        ]
        self._index.catalog.remove(gone)
        return len(gone)

    def _may_be_there(self, path: str) -> bool:
        return any(folder == "." or path == folder or path.startswith(folder + os.sep) for folder in self._unread)


def _hash(path: str) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.digest()


def _lock(folder: Path) -> ExitStack:
    """Keep other writers out. Raises OptionError."""
    stack = ExitStack()
    stack.callback(Lines(str(folder / "lock")).close)
    return stack
