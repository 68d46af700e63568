"""Finds pictures of an index that show the same."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..object_storage import Url
from .index import Index
from .vectors import one_vector, scores_of

if TYPE_CHECKING:
    from .catalog import File

MIN_SIMILARITY = 0.96  # mean cosine of two near duplicates; docs/inside/benchmarks.md shows what other values find
NEIGHBOURS = 20  # by mean vectors, whose query vectors are compared


def find_near_duplicates(index: Index, min_similarity: float = MIN_SIMILARITY) -> list[list[File]]:
    """Return groups of two or more pictures, each similar to another of its group, the largest file first.

    One file is one picture, whatever links lead to it.
    """
    files = {file.row: file for file in index.catalog.all()}
    rows = np.array(sorted(files), np.int64)
    parent = {row: row for row in files}  # a union-find forest

    def find(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    by_hash: dict[bytes, int] = {}
    for row, file in files.items():
        parent[find(row)] = find(by_hash.setdefault(file.hash, row))
    blocks = [(part, one_vector(embeds)) for part, embeds in index.blocks(rows)]
    rows = np.concatenate([part for part, _ in blocks] or [rows])
    vectors = np.concatenate([means for _, means in blocks] or [np.empty((0, 1), np.float32)])
    for part, embeds in index.blocks(rows):
        near = np.argpartition(-(one_vector(embeds) @ vectors.T), min(NEIGHBOURS, len(rows)) - 1)[:, :NEIGHBOURS]
        for row, query, others in zip(part.tolist(), embeds, rows[near], strict=True):
            for read, other_embeds in index.blocks(others):
                for other in read[scores_of(other_embeds, query) >= min_similarity].tolist():
                    parent[find(row)] = find(other)
    groups: dict[int, list[File]] = {}
    for row in rows.tolist():
        groups.setdefault(find(row), []).append(files[row])
    distinct = (_one_path_per_file(group, index.root) for group in groups.values() if len(group) > 1)
    return [group for group in distinct if len(group) > 1]


def _one_path_per_file(group: list[File], root: Path | Url) -> list[File]:
    """Sort a group and keep one path of each file, preferably not a symbolic link.

    Missing and changed files are left out: the copy of such a file may be the last one. A shard has no links.
    """
    ordered = sorted(group, key=lambda file: (-file.size, os.path.islink(root / file.path), file.path))
    if not os.path.isdir(root):
        return ordered
    found: dict[object, File] = {}
    for file in ordered:
        path = Path(root / file.path)
        with contextlib.suppress(OSError):
            status = path.stat()
            if (status.st_size, status.st_mtime_ns) == (file.size, file.time):
                found.setdefault((status.st_dev, status.st_ino) if status.st_ino else path.resolve(), file)
    return list(found.values())
