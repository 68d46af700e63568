"""Merges indexes into a packed one: `blip2rt merge`. A packed index can itself be merged again."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...bundle.atomic import AtomicFolder
from ...errors import OptionError, names_file
from .. import index_manifest
from ..catalog import Catalog, File
from ..vectors import Vectors
from .captions import read_table, relative_names, write_captions
from .codec import RECORD, Codec, pack
from .vectors import PackedVectors, write_clusters

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...backends import Floats

BLOCK = 4096  # pictures
SAMPLE = 8192  # pictures that a codec is fitted to
TEXTS = 512  # that show in which directions texts differ
_TWICE = "a picture is in two of the indexes: index and merge each folder once"
_THINGS = """airplane apple baby bear beach bed bench bicycle bird boat book bottle bridge building bus cake car cat
chair child church city clock clothes computer cow cup desk dog door elephant fence field fire fish flower food forest
fruit garden giraffe girl glass grass guitar hat hill horse house kitchen lake lamp man market meat motorcycle
mountain mirror ocean phone pizza plate river road rock roof sandwich sheep shirt shop sign sink skateboard snow sofa
soldier street suitcase sun surfboard table television tent toilet tower toy traffic train tree truck umbrella vegetable
wall water window woman zebra""".split()


@dataclass(frozen=True)
class Part:
    """An index to merge."""

    path: Path
    root: Path
    catalog: Catalog
    vectors: Vectors | PackedVectors

    def rows(self) -> NDArray[np.int64]:
        """The rows of its pictures, in ascending order."""
        free = np.array(self.catalog.free_rows(), np.int64)
        return np.setdiff1d(np.arange(self.catalog.row_count, dtype=np.int64), free, assume_unique=True)

    def records(self, codec: Codec) -> Iterator[NDArray[np.void]]:
        """Yield its records in blocks, in the order of its rows."""
        if isinstance(self.vectors, PackedVectors):
            for start in range(0, len(self.vectors), BLOCK):
                yield self.vectors.read(start, start + BLOCK)
            return
        rows = self.rows()
        for start in range(0, len(rows), BLOCK):
            yield pack(codec.coefficients(self.vectors.read(rows[start : start + BLOCK])))


def sample_texts(captions: Path | None) -> list[str]:
    """Return captions, or else sentences about everyday things, for Codec.fit."""
    rng = np.random.default_rng(0)
    if captions is not None:
        known = [text.partition("\n")[0] for _, text in read_table(captions)]
        return [known[i] for i in rng.choice(len(known), min(TEXTS, len(known)), replace=False)]
    return [f"a {_THINGS[a]} and a {_THINGS[b]}" for a, b in rng.integers(len(_THINGS), size=(TEXTS, 2))]


def merge(
    parts: Sequence[Part],
    out: Path,
    fields: dict[str, Any],
    embed_texts: Callable[[], Floats],
    captions: Path | None,
    report: Callable[[str], None],
) -> int:
    """Write a packed index and return its number of pictures.

    fields: those of index_manifest.write. embed_texts: makes text_embeds (T, E) for a new codec.
    """
    root = Path(os.path.commonpath([os.path.realpath(part.root) for part in parts]))
    if len({os.path.realpath(part.root) for part in parts}) < len(parts) and not any(
        isinstance(part.vectors, PackedVectors) for part in parts
    ):
        raise OptionError(_TWICE)
    codec = _common_codec(parts) or _fit(parts, embed_texts, report)
    counts = [len(part.rows()) for part in parts]
    with names_file(out), AtomicFolder(out) as atomic:
        folder = atomic.folder
        temporary = folder / "records.tmp"
        report(f"packing {sum(counts):,} pictures")
        with open(temporary, "wb") as file:
            for part in parts:
                for records in part.records(codec):
                    file.write(records.tobytes())
        packed = np.memmap(temporary, RECORD, "r") if any(counts) else np.zeros(0, RECORD)
        order = write_clusters(folder, codec, packed, report)
        del packed
        temporary.unlink()
        report("writing the catalog")
        catalog = Catalog(folder / "files.db", True)
        try:
            _fill(catalog, parts, counts, order, root)
            if captions is not None:
                report("indexing the captions")
                write_captions(folder, _by_row(catalog, captions, root))
        finally:
            catalog.close()
        index_manifest.write(folder, root, fields, out, index_manifest.PACKED)
        atomic.finish()
    return sum(counts)


def _common_codec(parts: Sequence[Part]) -> Codec | None:
    """The codec of the packed parts. Raises OptionError if they have several."""
    packed = [(part.path, part.vectors.codec) for part in parts if isinstance(part.vectors, PackedVectors)]
    for path, codec in packed[1:]:
        if not np.array_equal(codec.encoder, packed[0][1].encoder):
            fix = "merge the indexes that they were made of"
            raise OptionError(f"{packed[0][0]} and {path} were packed separately: {fix}")
    return packed[0][1] if packed else None


def _fit(parts: Sequence[Part], embed_texts: Callable[[], Floats], report: Callable[[str], None]) -> Codec:
    total = sum(len(part.rows()) for part in parts)
    if total < 2:
        raise OptionError("the indexes have fewer than two pictures: add some with `blip2rt index`")
    report("fitting the codec")
    chosen, first, samples = np.random.default_rng(0).choice(total, min(total, SAMPLE), replace=False), 0, []
    for part in parts:
        rows = part.rows()
        inside = np.sort(chosen[(chosen >= first) & (chosen < first + len(rows))]) - first
        assert isinstance(part.vectors, Vectors)
        samples.append(part.vectors.read(rows[inside]))
        first += len(rows)
    return Codec.fit(np.concatenate(samples), embed_texts())


def _fill(catalog: Catalog, parts: Sequence[Part], counts: list[int], order: NDArray[np.int64], root: Path) -> None:
    """Store the pictures of all parts. order: for each new row, the number of the picture in all parts together."""
    ends = np.cumsum(counts)
    rows = [part.rows() for part in parts]
    folders = [os.path.relpath(os.path.realpath(part.root), root) for part in parts]

    def files() -> Iterator[File]:
        for start in range(0, len(order), BLOCK):
            numbers = order[start : start + BLOCK]
            owners = np.searchsorted(ends, numbers, side="right")
            found = dict[int, File]()
            for part in np.unique(owners).tolist():
                mine = np.flatnonzero(owners == part)
                own_rows = rows[part][numbers[mine] - (ends[part] - counts[part])]
                known = parts[part].catalog.at(own_rows.tolist())
                for place, row in zip((start + mine).tolist(), own_rows.tolist(), strict=True):
                    path = os.path.normpath(os.path.join(folders[part], known[row].path))
                    found[place] = known[row]._replace(row=place, path=path)
            yield from (found[place] for place in sorted(found))

    try:
        catalog.fill(files())
    except sqlite3.IntegrityError:
        raise OptionError(_TWICE) from None


def _by_row(catalog: Catalog, captions: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Yield the captions of pictures that are in the index. Raises OptionError if none is."""
    found, seen = False, bytearray(catalog.row_count)
    for name, text in relative_names(read_table(captions), root):
        file = catalog.by_path(name)
        if file is not None:
            found = True
            if not seen[file.row]:
                seen[file.row] = 1
                yield file.row, text
    if not found:
        fix = "its paths are relative to the folder in which it was written: run the command there"
        raise OptionError(f"--captions {str(captions)!r} has none of the index's pictures: {fix}")
