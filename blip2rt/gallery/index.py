"""An index of embeddings: pictures go in, texts and pictures ask for the nearest.

An index is a folder: index.json (what it is of), files.db (catalog.py), vectors.i8 and shortlist.usearch (vectors.py).
A text's score with a picture is the largest cosine of its vectors (the paper's section 3.1). Two pictures' score is the
mean cosine of their vectors of the same query.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from .. import bundle as contract
from ..errors import CapabilityError, GalleryError, ImageError, OptionError
from . import about
from .catalog import Catalog, File, damaged
from .outputs import check_empty
from .vectors import BLOCK, Shortlist, Vectors, has_usearch, one_vector

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..backends import Floats
    from ..image import ImageLike
    from ..model import Model
    from .progress import Counts

EXACT = 4096  # pictures up to which all of them are scored, without a shortlist
SHORTLIST = 200  # pictures that are scored exactly, at least
PER_HIT = 10  # and for each one that is asked for
ROWS = 64  # pictures whose neighbours are looked for at once


@dataclass(frozen=True)
class Hit:
    """A picture that was found.

    score: a cosine, see Index.search; where the matching head has judged the picture, Match.score. Those two have
    scales of their own: compare hits with a probability, or hits without one.
    """

    path: Path
    name: str  # its path from the index's root
    score: float
    probability: float | None = None  # of the matching head, where it has judged it


class Index:
    """An index on disk, for searching and adding. Use it in a `with` block, or close it.

        from blip2rt.gallery import Index

        with Index.create("photos.index", "photos") as index:
            index.add()
            for hit in index.search("a dog on a beach", 5):
                print(hit.score, hit.path)

    Raises GalleryError for what is no index or another model's, OptionError for what makes no sense.
    """

    def __init__(self, path: Path, root: Path, shape: tuple[int, int], model: Model, write: bool) -> None:
        """See `open` and `create`."""
        self.path, self.root, self.model = path, root, model
        self._shape, self.writable = shape, write
        self.vectors = Vectors(path / "vectors.i8", *shape)
        self.catalog = Catalog(path / "files.db", write)
        try:
            if self.catalog.rows > len(self.vectors):
                raise damaged(path / "vectors.i8", f"it holds {len(self.vectors):,} of {self.catalog.rows:,} pictures")
        except BaseException:
            self.catalog.close()
            raise

    @classmethod
    def open(cls, path: str | os.PathLike[str], model: Model | None = None, *, write: bool = False) -> Index:
        """Open an index. model: the one that made it; None loads the embedded one. write: for add.

        Example: `Index.open("photos.index").search("a dog")`.
        """
        folder = Path(path)
        of = about.read(folder)
        model = _loaded(model)
        if of["model"] != about.fingerprint(model.bundle):
            raise GalleryError(
                f"{folder} was made by the model {of['name']!r}, and this one is {model.bundle.manifest.name!r} or "
                "another version of it: give --model, or make an index anew"
            )
        root = Path(os.path.normpath(folder / of["root"]))
        real = Path(os.path.realpath(folder), of["root"])
        if os.path.realpath(root) != os.path.realpath(real):  # the way to the index leads over a link
            root = Path(os.path.normpath(real))
        return cls(folder, root, (of["queries"], of["size"]), model, write)

    @classmethod
    def create(cls, path: str | os.PathLike[str], root: str | os.PathLike[str], model: Model | None = None) -> Index:
        """Open an index for writing; make it where there is none. root: the folder of its pictures.

        An index whose folder is not there any more is pointed at `root`.

        Example: `Index.create("photos.index", "photos").add()`.
        """
        folder, place = Path(path), Path(root)
        if not place.is_dir():
            raise OptionError(f"{str(place)!r} is no folder: give the folder of the pictures")
        if (folder / about.FILE).exists():
            index = cls.open(folder, model, write=True)
            if os.path.realpath(index.root) != os.path.realpath(place):
                index.close()
                if index.root.is_dir():
                    raise OptionError(f"{folder} is an index of {index.root}, not of {place}: give another --out")
                about.write(folder, place, about.read(folder))
                return cls.open(folder, model, write=True)
            return index
        check_empty(folder, "no index, and not empty: give another --out", about.LEFT)
        model = _loaded(model)
        if not model.bundle.has(contract.IMAGE_EMBED, contract.TEXT_EMBED):
            raise CapabilityError(
                f"bundle {model.bundle.manifest.name!r} cannot index: it lacks {contract.IMAGE_EMBED} or "
                f"{contract.TEXT_EMBED}; export it again with a stage-1 checkpoint"
            )
        folder.mkdir(parents=True, exist_ok=True)
        *_, queries, size = model.bundle.manifest.components[contract.IMAGE_EMBED].outputs[-1].shape
        name = model.bundle.manifest.name
        about.write(
            folder, place, {"name": name, "model": about.fingerprint(model.bundle), "queries": queries, "size": size}
        )
        return cls.open(folder, model, write=True)

    def __len__(self) -> int:
        return len(self.catalog)

    def __enter__(self) -> Index:  # noqa: PYI034  # typing.Self came with Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files."""
        self.catalog.close()

    def add(self) -> Counts:
        """Bring the index up to date with its folder: new, changed, moved and removed pictures. Return the counts.

        Raises GalleryError where the folder has no picture, and the index has: it may not be mounted.

        Example: `counts = Index.create("photos.index", "photos").add(); counts.made`.
        """
        from .indexing import update

        return update(self)

    def search(
        self, query: str | ImageLike, count: int = 10, *, image: bool = False, rerank: int = 0, exact: bool = False,
        unwanted: Callable[[], bool] | None = None,
    ) -> list[Hit]:  # fmt: skip
        """A text -> the pictures that fit it best, best first; with image=True a picture -> those like it.

        Hit.score: the largest cosine with the picture's vectors; of two pictures, the mean cosine.
        rerank: so many of the best are judged by what reads text and picture together. Their score is Match.score, and
        they come before all others, whatever the numbers say.
        exact: score every picture, without a shortlist.
        unwanted: where it says so, the rest is not judged, and is left out. It is asked every 8 pictures.

        Example: `index.search("a red car", 20, rerank=32)`; `index.search("query.jpg", image=True)`.
        """
        if image and rerank:
            raise OptionError("rerank judges a text with pictures, and the query is a picture: leave rerank out")
        if not image and (not isinstance(query, str) or not any(map(str.isalnum, query))):
            raise OptionError("a text has no words: say what the picture may show, as in 'a dog on grass'")
        wanted = max(count, rerank)
        asked = self.model.embed_image(query) if image else self.model.embed_text(str(query))
        places, scores = self.nearest(asked, wanted, exact)
        files = self.catalog.at(places.tolist())
        found = [(files[p], float(s)) for p, s in zip(places.tolist(), scores, strict=True) if p in files]
        hits = [Hit(self.root / file.path, file.path, score) for file, score in found[:wanted]]
        if rerank:
            hits = self._reranked(hits[:rerank], str(query), unwanted) + hits[rerank:]
        return hits[:count]

    def nearest(self, asked: Floats, count: int, exact: bool = False) -> tuple[NDArray[np.int64], Floats]:
        """A text's (E,) or a picture's (Q, E) embeds -> places and scores of the nearest, nearest first."""
        candidates = self._candidates(one_vector(asked) if asked.ndim == 2 else asked, count, exact)
        read = [(part, scores_of(embeds, asked)) for part, embeds in self.blocks(candidates)]
        places = np.concatenate([np.zeros(0, np.int64), *(part for part, _ in read)])
        scores = np.concatenate([np.zeros(0, np.float32), *(part for _, part in read)])
        order = np.argsort(-scores, kind="stable")[:count]
        return places[order], scores[order]

    def blocks(self, places: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Floats]]:
        """Places of pictures, some at a time, and their image_embeds (b, Q, E).

        Another process may write meanwhile: a place that the catalog has given up is left out.
        """
        for start in range(0, len(places), BLOCK):
            part = places[start : start + BLOCK]
            try:
                embeds = self.vectors.read(part)
            except GalleryError:  # a writer takes empty places before its catalog says so
                taken = self.catalog.at(part.tolist())
                part = part[[int(place) in taken for place in part]]
                embeds = self.vectors.read(part)
            yield part, embeds

    def neighbours(self, vectors: Floats, count: int) -> list[NDArray[np.int64]]:
        """One vector a picture (B, E) -> places of about the `count` nearest of each, by one vector a picture.

        They come in no order.
        """
        if self._shortlist is not None:
            return [self._shortlist.near(vector, count) for vector in vectors]
        places, means = self._means
        found: list[NDArray[np.int64]] = []
        for start in range(0, len(vectors), ROWS):
            scores = vectors[start : start + ROWS] @ means.T  # (ROWS, N)
            near = np.argpartition(scores, -min(count, len(places)), axis=1)[:, -count:]
            found.extend(places[near])
        return found

    def _candidates(self, vector: Floats, count: int, exact: bool) -> NDArray[np.int64]:
        if exact or self._shortlist is None:
            return self._taken
        near = self._shortlist.near(vector, max(SHORTLIST, PER_HIT * count))
        listed = np.unique(np.concatenate([near, np.array(self.catalog.unlisted(), np.int64)]))
        return np.setdiff1d(listed, self._empty, assume_unique=True)

    @property
    def _taken(self) -> NDArray[np.int64]:
        """Places that hold pictures."""
        return np.setdiff1d(np.arange(self.catalog.rows, dtype=np.int64), self._empty, assume_unique=True)

    @cached_property
    def _empty(self) -> NDArray[np.int64]:
        return np.array(self.catalog.empty(), np.int64)

    @cached_property
    def _means(self) -> tuple[NDArray[np.int64], Floats]:
        """Places that hold pictures (N,), and one vector of each (N, E)."""
        read = [(part, one_vector(embeds)) for part, embeds in self.blocks(self._taken)]
        return np.concatenate([part for part, _ in read]), np.concatenate([means for _, means in read])

    @cached_property
    def _shortlist(self) -> Shortlist | None:
        path = self.path / "shortlist.usearch"
        if not path.exists() or self.catalog.rows <= EXACT or not has_usearch():
            return None
        with contextlib.suppress(RuntimeError):  # it is damaged: every picture is scored, until `add` makes it anew
            return Shortlist(path, self._shape[1], view=True)
        return None

    def refresh(self) -> None:
        """Bring the shortlist up to date with the catalog; forget what was cached."""
        for name in ("_empty", "_means", "_shortlist"):
            self.__dict__.pop(name, None)
        path, new, empty = self.path / "shortlist.usearch", self.catalog.unlisted(), self.catalog.empty()
        if self.catalog.rows <= EXACT or not has_usearch():
            return
        if not path.exists() or 5 * len(empty) > self.catalog.rows:  # holes make a graph slow
            path.unlink(missing_ok=True)
            new = [file.row for file in self.catalog.all()]
        try:
            graph = Shortlist(path, self._shape[1], view=False)
        except RuntimeError:  # it is damaged
            path.unlink()
            self.refresh()
            return
        graph.drop(empty)
        for places, embeds in self.vectors.blocks(np.array(new, np.int64)):
            graph.add(places.tolist(), one_vector(embeds))
        if new or not path.exists():
            graph.save()
            self.catalog.list(new)

    def _reranked(self, hits: Sequence[Hit], text: str, unwanted: Callable[[], bool] | None) -> list[Hit]:
        """The hits in the order of Match.score. A picture that cannot be read any more is left out."""
        judged: list[Hit] = []
        for chunk in _chunks(hits, 8):
            if unwanted is not None and unwanted():
                break
            readable = []
            for hit in chunk:
                with contextlib.suppress(ImageError):
                    readable.append((hit, self.model.prepare(hit.path)))
            if readable:
                features = self.model.features([rgb for _, rgb in readable])
                for (hit, _), match in zip(
                    readable, self.model.match_features(features, [text] * len(readable)), strict=True
                ):
                    judged.append(Hit(hit.path, hit.name, match.score, match.probability))
        return sorted(judged, key=lambda hit: -hit.score)

    def files(self) -> Iterator[File]:
        """Every picture, in the order of its place."""
        return self.catalog.all()


def scores_of(image_embeds: Floats, asked: Floats) -> Floats:
    """image_embeds (B, Q, E), a text's (E,) or a picture's (Q, E) -> (B,)"""
    if asked.ndim == 1:
        largest: Floats = (image_embeds @ asked).max(axis=1)
        return largest
    return np.einsum("bqe,qe->b", image_embeds, asked).astype(np.float32) / np.float32(len(asked))


def _chunks(hits: Sequence[Hit], size: int) -> Iterator[Sequence[Hit]]:
    for start in range(0, len(hits), size):
        yield hits[start : start + size]


def _loaded(model: Model | None) -> Model:
    if model is not None:
        return model
    from ..model import load

    return load()
