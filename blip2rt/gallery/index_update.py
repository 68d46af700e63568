"""Updates an index from its folder.

A picture with the same size and time is skipped; one with new bytes is embedded. Bytes that the index already knows
under another path need no graph. Pictures that are gone leave the index, unless their folder could not be read. An
empty folder removes nothing: it may not be mounted. The root may also be a shard, or a URL.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..bundle.checksum import sha256_of
from ..errors import Blip2rtError, GalleryError, OptionError
from ..object_storage import Url
from .catalog import Catalog, File
from .output_files import AppendOnlyFile
from .prefetch import Batch, Executor, Parallelism, map_ordered, prefetch
from .progress import Counts, FailureLog, ProgressLine, failure_line
from .sources import Failure, Picture, Sources
from .vectors import Vectors
from .walk import walk

if TYPE_CHECKING:
    from ..backends import Floats
    from ..model import Model

BATCH_SIZE = 8


class WritableIndex(Protocol):
    """The parts of an index that an update needs."""

    path: Path
    root: Path | Url
    model: Model
    catalog: Catalog
    vectors: Vectors
    writable: bool

    def refresh(self) -> None: ...


def update(
    index: WritableIndex,
    parallelism: Parallelism | None = None,
    errors: str | None = None,
    strict: bool = False,
    quiet: bool = True,
    executor: Executor | None = None,
) -> Counts:
    """Walk the root and apply the differences.

    errors: file that lists failures. quiet: print nothing. executor: what runs the graphs, instead of this process.
    """
    if not index.writable:
        raise OptionError("the index is open for reading: open it with write=True, or with Index.create")
    counts, parallelism = Counts(), parallelism or Parallelism(BATCH_SIZE, 2)
    sources = index_sources(index.root)
    with ExitStack() as stack:
        lock = AppendOnlyFile(str(index.path / "lock"), named=False)
        stack.callback(lock.close)
        line = ProgressLine(sources, counts, shown=not quiet)
        stack.callback(line.close)
        failures = FailureLog(errors, line, silent=quiet and errors is None)
        stack.callback(failures.close)
        changes = _Changes(index)
        for batch, embeds in _run(index.model, changes, sources, parallelism, executor):
            counts.skipped += batch.skipped
            for _, failure in batch.failures:
                counts.failed += 1
                if strict:
                    raise Blip2rtError(f"{failure_line(failure)}: fix it, or leave out --strict")
                failures.add(failure)
            counts.processed += _store(index, batch, embeds, changes)
            line.show()
        counts.processed += changes.reused
        counts.skipped -= changes.reused
        counts.removed = changes.remove_missing()
        index.refresh()
    return counts


def index_sources(root: Path | Url | str) -> Sources:
    """Return where an index looks for its pictures."""
    return Sources((str(root),), recursive=True)


def _run(
    model: Model, changes: _Changes, sources: Sources, parallelism: Parallelism, executor: Executor | None
) -> Iterator[tuple[Batch[File], Floats | None]]:
    """Yield batches in order, each with the image_embeds (B, Q, E) of its images."""
    walked = changes.observe(walk(sources))
    if executor is not None:
        return executor.run(walked, changes.plan, parallelism.batch_size)
    batches = prefetch(model, walked, changes.plan, parallelism)
    return map_ordered(batches, partial(_embed, model), parallelism.workers)


def _embed(model: Model, batch: Batch[File]) -> Floats | None:
    """Return image_embeds (B, Q, E) of a batch, None if nothing is new. Runs on any thread."""
    if not batch.has_work:
        return None
    rgb = [pixels for _, pixels in batch.images]
    return np.concatenate([model.embed(rgb[start : start + BATCH_SIZE]) for start in range(0, len(rgb), BATCH_SIZE)])


def _store(index: WritableIndex, batch: Batch[File], embeds: Floats | None, changes: _Changes) -> int:
    """Store the vectors of a batch, then its catalog entries. Return the number of new pictures."""
    new = [(i, entry.job) for i, (entry, _) in enumerate(batch.images) if entry.job is not None]
    if not new or embeds is None:
        return 0
    rows = index.catalog.next_rows(len(new))
    index.vectors.write(rows, embeds[[i for i, _ in new]])
    files = [file._replace(row=row) for (_, file), row in zip(new, rows, strict=True)]
    index.catalog.put(files)
    changes.mark_present(files)
    return len(files)


class _Changes:
    """The differences between a folder and its index."""

    def __init__(self, index: WritableIndex) -> None:
        self._index = index
        self._present = bytearray(index.catalog.row_count)  # by row
        self._unreadable: list[str] = []  # paths that could not be read
        self._empty = True  # nothing was found so far
        self.reused = 0  # new pictures with the vectors of another

    def observe(self, walked: Iterator[Picture | Failure]) -> Iterator[Picture | Failure]:
        """Pass everything on and remember unreadable folders, whose pictures stay in the index."""
        for item in walked:
            self._empty = False
            if isinstance(item, Failure):
                self._unreadable.append(os.path.relpath(item.name, self._index.root))
            yield item

    def plan(self, picture: Picture) -> File | Failure | None:
        """Return the picture's catalog entry if it has to be embedded."""
        catalog, path = self._index.catalog, os.path.relpath(picture.name, self._index.root)
        known = catalog.by_path(path)
        try:
            size, time = picture.stamp()
            if known is not None and (known.size, known.time) == (size, time):
                self.mark_present([known])
                return None
            source = picture.source()
            digest = sha256(source).digest() if isinstance(source, bytes) else sha256_of(picture.path)
        except OSError as error:
            self.mark_present([known] if known is not None else [])  # its present content is unknown
            return Failure.unreadable(picture.name, error)
        file = File(-1, path, size, time, digest, picture.offset, picture.size)
        if known is not None and known.hash == digest:
            self.mark_present([known])
            catalog.move(known, file)
            return None
        return None if self._reuse_vectors(file) else file

    def _reuse_vectors(self, file: File) -> bool:
        """Take the vectors of a picture with the same bytes, if there is one."""
        index, same = self._index, self._index.catalog.by_hash(file.hash)
        if not same:
            return False
        moved = [other for other in same if os.path.isdir(index.root) and not os.path.lexists(index.root / other.path)]
        if moved:
            self.mark_present(moved[:1])
            index.catalog.move(moved[0], file)
            return True
        [row] = index.catalog.next_rows(1)
        index.vectors.write([row], index.vectors.read([same[0].row]))
        index.catalog.put([file._replace(row=row)])
        self.reused += 1
        self.mark_present([file._replace(row=row)])
        return True

    def mark_present(self, files: Iterable[File]) -> None:
        """Keep these in the index. A changed picture is marked after embedding: if that fails, it leaves the index."""
        for file in files:
            if file.row < len(self._present):
                self._present[file.row] = 1

    def remove_missing(self) -> int:
        """Remove the pictures that the walk did not find. Return their number.

        Raises GalleryError if the walk found nothing at all.
        """
        root, path = self._index.root, self._index.path
        if len(self._index.catalog) and (self._empty or not root.exists()):
            raise GalleryError(f"{root} has no pictures, but its index {path} has: mount the folder, or remove {path}")
        known = [file for file in self._index.catalog.all() if file.row < len(self._present)]
        missing = [f.row for f in known if not self._present[f.row] and not self._is_unreadable(f.path)]
        self._index.catalog.remove(missing)
        return len(missing)

    def _is_unreadable(self, path: str) -> bool:
        return any(folder == "." or path == folder or path.startswith(folder + os.sep) for folder in self._unreadable)
