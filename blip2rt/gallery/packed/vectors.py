"""The vectors of a packed index: records of similar pictures lie together, in clusters.

A search ranks clusters by the score of their centroid and the spread of their records around it, and scores the wide
coefficients of the best clusters' records, then all coefficients of the best records. It reads clusters through a
memory map, each in one piece, and verifies their checksums. A picture's row is the position of its record.

Files: codec.npz (codec.py), clusters.npz (centroids, variances, ends, checksums), records.bin.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...bundle.regular_files import read_bounded, require_regular
from ..catalog import damaged
from .codec import NARROW, RECORD, WIDE, Codec, unpack

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...backends import Floats

CODEC, CLUSTERS, RECORDS = "codec.npz", "clusters.npz", "records.bin"
PROBED, PROBED_SHARE = 100_000, 64  # least number and share (1 in 64) of pictures that a search scores
SHORTLISTED = 500  # records scored with all coefficients, at least
SPREAD = 3  # standard deviations of a cluster's scores that are added to its centroid's
BLOCK = 4096  # records scored at once
_ASSIGNED = 1024  # records compared with all centroids at once
_MAX_BYTES = 1 << 30
_SAMPLED_PER_CLUSTER = 32
_ITERATIONS = 8


class PackedVectors:
    """The records of a packed index. len(): their number. Raises GalleryError and OSError."""

    def __init__(self, folder: Path, queries: int, size: int) -> None:
        self._path = folder / RECORDS
        try:
            require_regular(self._path, follow=False)
        except OSError as error:
            raise damaged(self._path, str(error.strerror)) from None
        self.codec = Codec.load(folder / CODEC, queries, size)
        self._centroids, self._variances, self._ends, self._checksums = self._load_clusters(folder / CLUSTERS)
        count = int(self._ends[-1])
        if self._path.stat().st_size != count * RECORD.itemsize:
            raise damaged(self._path, "its size is not that of its clusters")
        self._records: NDArray[np.void] = np.memmap(self._path, RECORD, "r") if count else np.zeros(0, RECORD)

    @staticmethod
    def _load_clusters(path: Path) -> tuple[Floats, Floats, NDArray[np.int64], NDArray[np.uint32]]:
        try:
            with np.load(io.BytesIO(read_bounded(path, _MAX_BYTES, follow=False)), allow_pickle=False) as stored:
                centroids, variances = (stored[name].astype(np.float32) for name in ("centroids", "variances"))
                ends, checksums = stored["ends"].astype(np.int64), stored["checksums"].astype(np.uint32)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, MemoryError) as error:
            raise damaged(path, str(error) or type(error).__name__) from None
        sound = len(ends) > 0 and centroids.shape == variances.shape == (len(ends), WIDE + NARROW)
        sound = sound and checksums.shape == ends.shape and ends[0] >= 0 and (np.diff(ends) >= 0).all()
        if not sound or not np.isfinite(centroids).all() or not (variances >= 0).all():
            raise damaged(path, "its arrays are invalid")
        return centroids, variances, ends, checksums

    def __len__(self) -> int:
        return len(self._records)

    def read(self, start: int, end: int) -> NDArray[np.void]:
        """Return the records of the rows from `start` to `end`, without verifying them."""
        return self._records[start:end]

    def cluster(self, number: int) -> tuple[int, NDArray[np.void]]:
        """Return the first row and the records of a cluster. Raises GalleryError if they were changed."""
        first, end = int(self._ends[number - 1]) if number else 0, int(self._ends[number])
        records = self._records[first:end]
        if zlib.crc32(records.tobytes()) != self._checksums[number]:
            raise damaged(self._path, f"the checksum of cluster {number} is wrong")
        return first, records

    def nearest(self, query: Floats, count: int, exact: bool = False) -> tuple[NDArray[np.int64], Floats]:
        """Return rows and scores nearest to the embeds of a text (E,) or a picture (Q, E), nearest first.

        exact: score every record.
        """
        weights, biases = self.codec.projection(query)
        sizes = np.diff(self._ends, prepend=0)
        spread = np.sqrt(self._variances @ weights**2)
        order = np.argsort(-(self._centroids @ weights + biases + SPREAD * spread).max(axis=1), kind="stable")
        order = order[sizes[order] > 0]
        if not exact:
            wanted = max(PROBED, len(self) // PROBED_SHARE, 20 * count)
            order = order[: 1 + int(np.searchsorted(np.cumsum(sizes[order]), wanted))]
        used, kept = (WIDE + NARROW, count) if exact else (WIDE, max(SHORTLISTED, 20 * count))
        best, best_scores = np.zeros(0, np.int64), np.zeros(0, np.float32)
        for rows, records in self._blocks(np.sort(order)):
            coefficients = unpack(records) if exact else records["wide"].astype(np.float32)
            scores = _scores(coefficients, weights[:used], biases)
            best, best_scores = np.append(best, rows), np.append(best_scores, scores)
            if len(best) > kept:
                top = np.argpartition(-best_scores, kept - 1)[:kept]
                best, best_scores = best[top], best_scores[top]
        if not exact:
            best_scores = _scores(unpack(self._records[best]), weights, biases)
        ranked = np.lexsort((best, -best_scores))[:count]
        return best[ranked], best_scores[ranked]

    def scores(self, rows: NDArray[np.int64], query: Floats) -> Floats:
        """Return the scores (B,) of some rows."""
        weights, biases = self.codec.projection(query)
        for number in np.unique(np.searchsorted(self._ends, rows, side="right")).tolist():
            self.cluster(number)
        return _scores(unpack(self._records[rows]), weights, biases)

    def _blocks(self, clusters: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.void]]]:
        """Yield the rows and records of some clusters, several at once."""
        rows: list[NDArray[np.int64]] = []
        records: list[NDArray[np.void]] = []
        for number in clusters.tolist():
            first, found = self.cluster(number)
            rows.append(np.arange(first, first + len(found)))
            records.append(found)
            if sum(map(len, rows)) >= BLOCK:
                yield np.concatenate(rows), _join(records)
                rows, records = [], []
        if rows:
            yield np.concatenate(rows), _join(records)


def _scores(coefficients: Floats, weights: Floats, biases: Floats) -> Floats:
    """Scores (B,) of coefficients (B, K) by a codec's projection: weights (K, R), biases (R,)."""
    by_query = weights.T @ coefficients.T
    by_query += biases[:, None]
    largest: Floats = by_query.max(axis=0)
    return largest


def write_clusters(
    folder: Path, codec: Codec, records: NDArray[np.void], report: Callable[[str], None]
) -> NDArray[np.int64]:
    """Write the files of a PackedVectors, and return the number of the given record in each row."""
    count = len(records)
    clusters = round(4 * count**0.5) if count > PROBED else 1
    chosen = np.random.default_rng(0).choice(count, min(count, clusters * _SAMPLED_PER_CLUSTER), replace=False)
    report(f"clustering {count:,} pictures")
    centroids = _centroids(_points(records[np.sort(chosen)], codec), clusters)
    parts = (records[start : start + BLOCK] for start in range(0, count, BLOCK))
    nearest = np.concatenate([np.zeros(0, np.int32), *(_assign(_points(part, codec), centroids) for part in parts)])
    order = np.argsort(nearest, kind="stable")
    ends = np.cumsum(np.bincount(nearest, minlength=clusters))
    checksums, means = np.zeros(clusters, np.uint32), np.zeros((clusters, WIDE + NARROW), np.float32)
    variances = np.zeros_like(means)
    report("writing the clusters")
    with open(folder / RECORDS, "wb") as file:
        for number, end in enumerate(ends.tolist()):
            part = records[order[int(ends[number - 1]) if number else 0 : end]]
            checksums[number] = zlib.crc32(part.tobytes())
            if len(part):
                coefficients = unpack(part)
                means[number], variances[number] = coefficients.mean(axis=0), coefficients.var(axis=0)
            file.write(part.tobytes())
    codec.save(folder / CODEC)
    with open(folder / CLUSTERS, "wb") as file:
        np.savez(file, centroids=means, variances=variances, ends=ends, checksums=checksums)
    return order


def _join(records: list[NDArray[np.void]]) -> NDArray[np.void]:
    """Concatenate records as bytes, which is faster than field by field."""
    return np.concatenate([part.view(np.uint8) for part in records]).view(RECORD)


def _points(records: NDArray[np.void], codec: Codec) -> Floats:
    """The coefficients that clusters are made of (B, WIDE), all in one unit."""
    return records["wide"] * codec.steps[:WIDE]


def _centroids(points: Floats, clusters: int) -> Floats:
    """Lloyd's k-means (clusters, WIDE). An empty cluster stays where it was."""
    centroids: Floats = points[np.random.default_rng(1).choice(len(points), min(len(points), clusters), replace=False)]
    for _ in range(_ITERATIONS if clusters > 1 else 0):
        nearest = _assign(points, centroids)
        order = np.argsort(nearest, kind="stable")
        found, starts = np.unique(nearest[order], return_index=True)
        counts = np.diff(starts, append=len(points))[:, None]
        centroids[found] = np.add.reduceat(points[order], starts, axis=0) / counts
    return centroids


def _assign(points: Floats, centroids: Floats) -> NDArray[np.int32]:
    """The nearest centroid (N,) of each point."""
    norms = (centroids**2).sum(axis=1) / 2
    parts = (points[start : start + _ASSIGNED] for start in range(0, len(points), _ASSIGNED))
    return np.concatenate([(norms - part @ centroids.T).argmin(axis=1).astype(np.int32) for part in parts])
