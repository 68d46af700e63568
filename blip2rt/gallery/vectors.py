"""The vectors of an index on disk, and a shortlist over one vector a picture. Knows numbers, no files of pictures.

`Vectors` holds all Q vectors of each picture in a byte a number, with a scale a vector: the score comes from them.
A checksum of each picture's is looked at whenever they are read.
`Shortlist` finds the pictures that are worth it: usearch's HNSW graph over the mean of each picture's vectors, read
from the disk as it is needed. docs/gallery.md says why.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import OptionError
from ..install_hints import pip_install
from .catalog import damaged

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..backends import Floats

BLOCK = 4096  # pictures that are scored at once


def one_vector(image_embeds: Floats) -> Floats:
    """image_embeds (..., Q, E) -> (..., E): the mean of a picture's vectors, of unit length."""
    mean = image_embeds.mean(axis=-2)
    unit: Floats = mean / np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), np.float32(1e-12))
    return unit


class Vectors:
    """image_embeds (Q, E) of each place, in one file. len(): places that it has room for.

    Raises OSError, and GalleryError where the file does not hold what was written.
    """

    def __init__(self, path: Path, queries: int, size: int) -> None:
        self._path = path
        self._type = np.dtype([("check", "<u4"), ("scales", "<f4", (queries,)), ("codes", "i1", (queries, size))])

    def write(self, places: Sequence[int], image_embeds: Floats) -> None:
        """image_embeds (B, Q, E), rows of unit length -> their places. They are on the disk when this returns."""
        records = np.zeros(len(places), self._type)
        scales = np.abs(image_embeds).max(axis=-1) / 127  # (B, Q)
        records["codes"] = codes = np.rint(image_embeds / scales[..., None])
        records["scales"] = 1 / np.linalg.norm(codes, axis=-1)  # what is read has unit length again
        records["check"] = _checks(places, records)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        try:
            for place, record in zip(places, records, strict=True):
                os.lseek(descriptor, place * self._type.itemsize, os.SEEK_SET)
                data = record.tobytes()
                while data:
                    data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)  # before the catalog says that they are there
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from None
        finally:
            os.close(descriptor)

    def read(self, places: Sequence[int] | NDArray[np.int64]) -> Floats:
        """Places -> image_embeds (B, Q, E)"""
        if len(places) == 0:
            return np.zeros((0, *self._type["codes"].shape), np.float32)
        records = self._file()[np.asarray(places, np.int64)]
        bad = int((records["check"] != _checks(places, records)).sum())
        if bad:
            raise damaged(self._path, f"vectors of {bad:,} pictures are not as they were written")
        return self._floats(records)

    def blocks(self, places: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Floats]]:
        """Places, some at a time, and their image_embeds (b, Q, E)."""
        for start in range(0, len(places), BLOCK):
            part = places[start : start + BLOCK]
            yield part, self.read(part)

    def __len__(self) -> int:
        return os.stat(self._path).st_size // self._type.itemsize if self._path.exists() else 0

    def _file(self) -> NDArray[Any]:
        return np.memmap(self._path, self._type, "r", shape=(len(self),))

    @staticmethod
    def _floats(records: NDArray[Any]) -> Floats:
        floats: Floats = records["codes"].astype(np.float32) * records["scales"][..., None]
        return floats


def _checks(places: Iterable[int], records: NDArray[Any]) -> NDArray[np.uint32]:
    """The CRC-32 of each place's scales and codes, that begins at the place: what lies elsewhere has another."""
    rows = records.view(np.uint8).reshape(len(records), -1)
    return np.array([zlib.crc32(row[4:].data, int(place)) for place, row in zip(places, rows, strict=True)], np.uint32)


def has_usearch() -> bool:
    """Whether a shortlist can be made and read."""
    try:
        import usearch.index  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


class Shortlist:
    """Which places lie near a vector (E,): approximate, in a time that hardly grows with their number."""

    def __init__(self, path: Path, size: int, view: bool) -> None:
        """view: read it from the disk as needed. Without a file it is empty."""
        try:
            from usearch.index import Index
        except ModuleNotFoundError:
            raise OptionError(f"an index of this size needs usearch: {pip_install('gallery')}") from None
        self._path = path
        self._graph = Index(ndim=size, metric="ip", dtype="i8", connectivity=16, expansion_add=64)
        if path.exists():
            self._graph.view(str(path)) if view else self._graph.load(str(path))

    def __len__(self) -> int:
        return len(self._graph)

    def drop(self, places: Sequence[int]) -> None:
        """Forget places; what is not known is left."""
        known = [place for place in places if place in self._graph]
        if known:
            self._graph.remove(np.array(known, np.uint64))

    def add(self, places: Sequence[int], vectors: Floats) -> None:
        """Places, and one vector of unit length each, (B, E)"""
        self.drop(places)
        self._graph.add(np.array(places, np.uint64), np.ascontiguousarray(vectors, np.float32))

    def save(self) -> None:
        """Write it whole."""
        partial = self._path.with_name(f".{self._path.name}.partial")
        self._graph.save(str(partial))
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, self._path)

    def near(self, vector: Floats, count: int) -> NDArray[np.int64]:
        """The `count` nearest places, nearest first."""
        if len(self._graph) == 0:
            return np.zeros(0, np.int64)
        setattr(self._graph, "expansion_search", max(128, count))  # noqa: B010  # to mypy it has no setter
        found = self._graph.search(np.ascontiguousarray(vector, np.float32), min(count, len(self._graph)))
        return np.asarray(found.keys, np.int64)
