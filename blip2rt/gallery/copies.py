"""Near-copies: pictures of an index that show the same. Knows vectors and places."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .index import Index, scores_of
from .vectors import one_vector

if TYPE_CHECKING:
    from .catalog import File

ALIKE = (
    0.96  # mean cosine from which two pictures are near-copies; docs/gallery.md has what it finds and what it misses
)
NEIGHBOURS = 20  # of each picture that are looked at


def near_copies(index: Index, alike: float = ALIKE) -> list[list[File]]:
    """Groups of two or more pictures, each like another of its group. The largest files of a group come first."""
    files = {file.row: file for file in index.files()}
    places = np.array(sorted(files), np.int64)
    group = {place: place for place in files}

    def first(place: int) -> int:
        while group[place] != place:
            group[place] = group[group[place]]
            place = group[place]
        return place

    by_hash: dict[bytes, int] = {}
    for place, file in files.items():
        group[first(place)] = first(by_hash.setdefault(file.hash, place))
    for part, embeds in index.blocks(places):
        near = index.neighbours(one_vector(embeds), NEIGHBOURS)
        for place, asked, others in zip(part.tolist(), embeds, near, strict=True):
            known = np.array([other for other in others.tolist() if other in files], np.int64)
            for read, other_embeds in index.blocks(known):
                for other in read[scores_of(other_embeds, asked) >= alike].tolist():
                    group[first(place)] = first(other)
    groups: dict[int, list[File]] = {}
    for place in places.tolist():
        groups.setdefault(first(place), []).append(files[place])
    return [sorted(each, key=lambda file: (-file.size, file.path)) for each in groups.values() if len(each) > 1]
