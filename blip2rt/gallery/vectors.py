"""The vectors of an index on disk, and an approximate shortlist over one vector a picture.

`Vectors` stores all Q vectors of each picture as int8 with one scale a vector; scores are computed from them. Every
read verifies a checksum of each picture's vectors.
`Shortlist` finds candidates: usearch's HNSW graph over the mean of each picture's vectors, memory-mapped from disk.
docs/gallery.md explains the choice.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bundle.regular_files import open_regular
from ..errors import GalleryError, OptionError, boundary, names_file
from ..install_hints import pip_install
from .catalog import damaged

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..backends import Floats

BLOCK = 4096  # pictures scored at once
CONNECTIVITY = 16  # links of a node of the shortlist, twice as many at the lowest level


def one_vector(image_embeds: Floats) -> Floats:
    """Reduce image_embeds (..., Q, E) to (..., E): the mean of each picture's vectors, with unit length."""
    mean = image_embeds.mean(axis=-2)
    unit: Floats = mean / np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), np.float32(1e-12))
    return unit


def scores_of(image_embeds: Floats, query: Floats) -> Floats:
    """Score image_embeds (B, Q, E) against the embeds of a text (E,) or a picture (Q, E). Returns (B,)."""
    if query.ndim == 1:
        largest: Floats = (image_embeds @ query).max(axis=1)
        return largest
    return np.einsum("bqe,qe->b", image_embeds, query).astype(np.float32) / np.float32(len(query))


class Vectors:
    """image_embeds (Q, E) of each row, in one file. len(): the number of rows in the file.

    Raises OSError, and GalleryError if the file was changed since it was written.
    """

    def __init__(self, path: Path, queries: int, size: int) -> None:
        self._path = path
        self._type = np.dtype([("checksum", "<u4"), ("scales", "<f4", (queries,)), ("codes", "i1", (queries, size))])

    def write(self, rows: Sequence[int], image_embeds: Floats) -> None:
        """Write image_embeds (B, Q, E), vectors of unit length, to their rows and sync the file."""
        records = np.zeros(len(rows), self._type)
        scales = np.abs(image_embeds).max(axis=-1) / 127  # (B, Q)
        records["codes"] = codes = np.rint(image_embeds / scales[..., None])
        records["scales"] = 1 / np.linalg.norm(codes, axis=-1)  # so that the stored vectors have unit length again
        records["checksum"] = _checksums(rows, records)
        descriptor = open_regular(self._path, os.O_RDWR | os.O_CREAT, follow=False)
        try:
            with names_file(self._path):
                for row, record in zip(rows, records, strict=True):
                    os.lseek(descriptor, row * self._type.itemsize, os.SEEK_SET)
                    data = record.tobytes()
                    while data:
                        data = data[os.write(descriptor, data) :]
                os.fsync(descriptor)  # before the catalog records them
        finally:
            os.close(descriptor)

    def read(self, rows: Sequence[int] | NDArray[np.int64]) -> Floats:
        """Return the image_embeds (B, Q, E) of some rows."""
        if len(rows) == 0:
            return np.zeros((0, *self._type["codes"].shape), np.float32)
        file: NDArray[Any] = np.memmap(self._path, self._type, "r", shape=(len(self),))
        records = file[np.asarray(rows, np.int64)]
        sane = ((records["scales"] > 0) & (records["scales"] <= 1)).all(axis=1)  # neither infinite nor NaN
        bad = int((~sane | (records["checksum"] != _checksums(rows, records))).sum())
        if bad:
            raise damaged(self._path, f"pictures with wrong checksums: {bad:,}")
        floats: Floats = records["codes"].astype(np.float32) * records["scales"][..., None]
        return floats

    def __len__(self) -> int:
        return os.stat(self._path).st_size // self._type.itemsize if self._path.exists() else 0


def _checksums(rows: Iterable[int], records: NDArray[Any]) -> NDArray[np.uint32]:
    """The CRC-32 of the scales and codes of each row, seeded with the row number: a misplaced record has another."""
    data = records.view(np.uint8).reshape(len(records), -1)
    return np.array([zlib.crc32(record[4:].data, int(row)) for row, record in zip(rows, data, strict=True)], np.uint32)


def has_usearch() -> bool:
    """Whether usearch, which the shortlist needs, is installed."""
    try:
        import usearch.index  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def _new_graph(size: int) -> Any:
    try:
        from usearch.index import Index
    except ModuleNotFoundError:
        raise OptionError(f"an index of this size needs usearch: {pip_install('gallery')}") from None
    return Index(ndim=size, metric="ip", dtype="i8", connectivity=CONNECTIVITY, expansion_add=64)


class Shortlist:
    """An approximate nearest-neighbour index of one vector (E,) a row. Search time hardly grows with their number."""

    def __init__(self, path: Path, size: int, view: bool) -> None:
        """view: map the file into memory instead of loading it. A missing file is an empty shortlist."""
        self._path, self._graph = path, _new_graph(size)
        if path.exists():
            self._graph.view(str(path)) if view else self._graph.load(str(path))

    def __len__(self) -> int:
        return len(self._graph)

    def remove(self, rows: Sequence[int]) -> None:
        """Remove rows; unknown ones are ignored."""
        known = [row for row in rows if row in self._graph]
        if known:
            self._graph.remove(np.array(known, np.uint64))

    def add(self, rows: Sequence[int], vectors: Floats) -> None:
        """Add or replace rows with one vector of unit length each, (B, E)."""
        self.remove(rows)
        self._graph.add(np.array(rows, np.uint64), np.ascontiguousarray(vectors, np.float32))

    def save(self) -> None:
        """Replace the file atomically."""
        partial = self._path.with_name(f".{self._path.name}.partial")
        partial.unlink(missing_ok=True)  # it may be a link
        with boundary(f"cannot write {partial}", GalleryError):
            self._graph.save(str(partial))
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, self._path)

    def nearest(self, vector: Floats, count: int) -> NDArray[np.int64]:
        """Return the `count` nearest rows, nearest first."""
        if len(self._graph) == 0:
            return np.zeros(0, np.int64)
        setattr(self._graph, "expansion_search", max(128, count))  # noqa: B010  # mypy sees no setter
        found = self._graph.search(np.ascontiguousarray(vector, np.float32), min(count, len(self._graph)))
        return np.asarray(found.keys, np.int64)


def stamp_of(path: Path) -> bytes:
    """Identify a file as this machine wrote it: a change or a copy, such as a stranger's, has another stamp."""
    status = os.stat(path)
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}".encode()
