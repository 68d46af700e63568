"""A searchable index of picture embeddings.

An index is a folder: index.json (index_manifest.py), files.db (catalog.py), vectors.i8 and shortlist.usearch
(vectors.py). The score of a text with a picture is the largest cosine over the picture's vectors (section 3.1 of the
paper). The score of two pictures is the mean cosine of their vectors from the same query.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..bundle import IMAGE_EMBED, TEXT_EMBED
from ..bundle.fingerprint import fingerprint
from ..bundle.regular_files import require_regular
from ..errors import CapabilityError, GalleryError, ImageError, OptionError
from ..object_storage import Url, is_url
from . import index_manifest
from .catalog import Catalog, damaged
from .output_files import check_empty
from .sources import is_shard
from .tar_samples import picture_at
from .vectors import BLOCK, Shortlist, Vectors, has_usearch, one_vector, scores_of, stamp_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..backends import Floats
    from ..image import ImageLike
    from ..model import Model
    from .progress import Counts

SHORTLIST = "shortlist.usearch"
MAX_EXACT = 4096  # largest index that is searched without a shortlist
MIN_CANDIDATES = 200  # shortlisted pictures whose exact score is computed
CANDIDATES_PER_HIT, CANDIDATES_PER_ROOT = 10, 3  # per result, and per square root of the pictures
RERANK_BATCH = 8
_EXCLUDING = re.compile(r"(.+?),? (?:without|but no|but not|with no)(?: any| an?| the)? (.+)", re.IGNORECASE)
_EXCLUDED_WEIGHT = 0.8  # the best of 0.2 to 1 for 30 pairs of nouns: recipes/nano/LOG.md


@dataclass(frozen=True)
class Hit:
    """A search result.

    score: a cosine, see Index.search; for a reranked picture, Match.score. The two have different scales: compare hits
    that have a probability with each other, and hits that have none with each other.
    """

    path: Path | Url  # of a picture in a shard: that of the shard, followed by the member's name
    name: str  # the path relative to the index's root
    score: float
    probability: float | None = None  # of the matching head, if the picture was reranked
    offset: int = 0
    length: int = -1  # of its bytes in a shard; -1: the picture is a file


class Index:
    """An index on disk, for searching and adding. Use it in a `with` block, or close it.

        from blip2rt.gallery import Index

        with Index.create("photos.index", "photos") as index:
            index.add()
            for hit in index.search("a dog on a beach", 5):
                print(hit.score, hit.path)

    Raises GalleryError for a folder that is not an index or belongs to another model, OptionError for wrong arguments.
    """

    def __init__(self, path: Path, root: Path | Url, shape: tuple[int, int], model: Model, write: bool) -> None:
        """See `open` and `create`."""
        self.path, self.root, self.model = path, root, model
        self._shape, self.writable = shape, write
        self.vectors = Vectors(path / "vectors.i8", *shape)
        for name in ("files.db", "files.db-journal", "vectors.i8", SHORTLIST):
            try:
                with contextlib.suppress(FileNotFoundError):
                    require_regular(path / name, follow=False)
            except OSError as error:
                raise damaged(path / name, str(error.strerror)) from None
        self.catalog = Catalog(path / "files.db", write)
        if (missing := self.catalog.row_count - len(self.vectors)) > 0:
            self.catalog.close()
            raise damaged(path / "vectors.i8", f"it lacks {missing:,} pictures")

    @classmethod
    def open(cls, path: str | os.PathLike[str], model: Model | None = None, *, write: bool = False) -> Index:
        """Open an index. model: the one that made it; None loads the embedded one. write: open it for `add`.

        Example: `Index.open("photos.index").search("a dog")`.
        """
        folder = Path(path)
        manifest = index_manifest.read(folder)
        model = model or _load_embedded()
        if manifest["model"] != fingerprint(model.bundle):
            raise GalleryError(
                f"{folder} was made by the model {manifest['name']!r}, and this one is {model.bundle.manifest.name!r} "
                "or another version of it: give --model, or create a new index"
            )
        shape = index_manifest.shape_of(model.bundle)
        if (manifest["queries"], manifest["size"]) != shape:
            raise damaged(folder / index_manifest.FILE_NAME, "its vectors have another shape than the model's")
        if is_url(manifest["root"]):
            return cls(folder, Url.parse(manifest["root"]), shape, model, write)
        root = Path(os.path.normpath(folder / manifest["root"]))
        real = Path(os.path.realpath(folder), manifest["root"])
        if os.path.realpath(root) != os.path.realpath(real):  # the path of the index contains a symbolic link
            root = Path(os.path.normpath(real))
        return cls(folder, root, shape, model, write)

    @classmethod
    def create(cls, path: str | os.PathLike[str], root: str | os.PathLike[str], model: Model | None = None) -> Index:
        """Open an index for writing, and create it if necessary. root: the folder of its pictures, or a shard (.tar).

        The root may also be the URL of either.

        An index whose folder no longer exists is changed to `root`.

        Example: `Index.create("photos.index", "photos").add()`.
        """
        folder, root = Path(path), Url.parse(str(root)) if is_url(str(root)) else Path(root)
        if isinstance(root, Url) and ("*" in root.path or root.options):
            raise OptionError(f"{str(root)!r} is a pattern or has options: give a folder or a shard (.tar)")
        if not isinstance(root, Url) and not root.is_dir() and not is_shard(str(root)):
            raise OptionError(f"{str(root)!r} is not a folder, nor a shard (.tar): give the folder of the pictures")
        if (folder / index_manifest.FILE_NAME).exists():
            index = cls.open(folder, model, write=True)
            if os.path.realpath(index.root) == os.path.realpath(root):
                return index
            index.close()
            if index.root.exists():
                raise OptionError(f"{folder} is an index of {index.root}, not of {root}: give another --out")
            index_manifest.write(folder, root, index_manifest.read(folder))
            return cls.open(folder, model, write=True)
        check_empty(folder, "neither an index nor empty: give another --out", index_manifest.PARTIAL_NAME)
        model = model or _load_embedded()
        name = model.bundle.manifest.name
        if not model.bundle.has(IMAGE_EMBED, TEXT_EMBED):
            raise CapabilityError(
                f"bundle {name!r} cannot index: it lacks {IMAGE_EMBED} or {TEXT_EMBED}; export it "
                "again with a stage-1 checkpoint"
            )
        folder.mkdir(parents=True, exist_ok=True)
        index_manifest.write(folder, root, index_manifest.fields_of(model.bundle))
        return cls.open(folder, model, write=True)

    def __len__(self) -> int:
        return len(self.catalog)

    def __enter__(self) -> Index:  # noqa: PYI034  # typing.Self came with Python 3.11
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        self.catalog.close()

    def add(self) -> Counts:
        """Update the index with the new, changed, moved and removed pictures of its folder. Return the counts.

        Raises GalleryError if the folder has no pictures but the index does: the folder may not be mounted.

        Example: `counts = Index.create("photos.index", "photos").add(); counts.processed`.
        """
        from .index_update import update

        return update(self)

    def search(
        self,
        query: str | ImageLike,
        count: int = 10,
        *,
        image: bool = False,
        rerank: int = 0,
        exact: bool = False,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> list[Hit]:
        """Return the pictures that best match a text or, with image=True, a picture; best first.

        Hit.score: the largest cosine over the picture's vectors; for a picture query, the mean cosine. "a beach without
        people" searches for "a beach" and subtracts 0.8 of the embedding of "people"; it cannot be reranked.
        rerank: rescore this many of the best with the matching head, which reads text and picture together. Their score
        is Match.score, and they precede all others, whatever the numbers are.
        exact: score every picture instead of a shortlist.
        cancelled: checked every 8 pictures while reranking; when it returns True, the rest is left out.

        Example: `index.search("a red car", 20, rerank=32)`; `index.search("query.jpg", image=True)`.
        """
        if image and rerank:
            raise OptionError("rerank matches a text with pictures, but the query is a picture: leave rerank out")
        if not image and (not isinstance(query, str) or not any(map(str.isalnum, query))):
            raise OptionError("the text has no words: describe what the picture shows, as in 'a dog on grass'")
        excluding = None if image else _EXCLUDING.fullmatch(str(query).strip(" .?!"))
        text, excluded = excluding.groups() if excluding else (str(query), "")
        if excluded and rerank:
            raise OptionError(f"rerank cannot exclude {excluded!r}: leave rerank out, or describe what is there")
        needed = max(count, rerank)
        embeds = self.model.embed_image(query) if image else self.model.embed_text(text)
        if excluded:
            embeds = embeds - np.float32(_EXCLUDED_WEIGHT) * self.model.embed_text(excluded)
        rows, scores = self.nearest(embeds, needed, exact)
        files = self.catalog.at(rows.tolist())
        found = [(files[row], float(score)) for row, score in zip(rows.tolist(), scores, strict=True) if row in files]
        hits = [Hit(self.root / f.path, f.path, score, None, f.offset, f.length) for f, score in found[:needed]]
        if rerank:
            hits = self._reranked(hits[:rerank], str(query), cancelled) + hits[rerank:]
        return hits[:count]

    def nearest(self, query: Floats, count: int, exact: bool = False) -> tuple[NDArray[np.int64], Floats]:
        """Return rows and scores nearest to the embeds of a text (E,) or a picture (Q, E), nearest first."""
        candidates = self._candidates(one_vector(query) if query.ndim == 2 else query, count, exact)
        scored = [(part, scores_of(embeds, query)) for part, embeds in self.blocks(candidates)]
        rows = np.concatenate([np.zeros(0, np.int64), *(part for part, _ in scored)])
        scores = np.concatenate([np.zeros(0, np.float32), *(part for _, part in scored)])
        order = np.argsort(-scores, kind="stable")[:count]
        return rows[order], scores[order]

    def blocks(self, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Floats]]:
        """Yield rows of pictures in blocks, each with its image_embeds (b, Q, E).

        Another process may write at the same time: rows that the catalog has freed are left out.
        """
        for start in range(0, len(rows), BLOCK):
            part = rows[start : start + BLOCK]
            try:
                embeds = self.vectors.read(part)
            except GalleryError:  # a writer fills free rows before it records them in the catalog
                used = self.catalog.at(part.tolist())
                part = part[[int(row) in used for row in part]]
                embeds = self.vectors.read(part)
            yield part, embeds

    def used_rows(self) -> NDArray[np.int64]:
        """Return the rows of its pictures, in ascending order."""
        return np.setdiff1d(np.arange(self.catalog.row_count, dtype=np.int64), self._free_rows, assume_unique=True)

    def _candidates(self, vector: Floats, count: int, exact: bool) -> NDArray[np.int64]:
        if exact or self._shortlist is None:
            return self.used_rows()
        by_size = int(CANDIDATES_PER_ROOT * self.catalog.row_count**0.5)
        near = self._shortlist.nearest(vector, max(MIN_CANDIDATES, CANDIDATES_PER_HIT * count, by_size))
        new = np.array(self.catalog.not_in_shortlist(), np.int64)
        found = np.unique(np.concatenate([near, new]))
        found = found[(found >= 0) & (found < self.catalog.row_count)]
        return np.setdiff1d(found, self._free_rows, assume_unique=True)

    @property
    def scores_all(self) -> bool:
        """Whether each search scores all of many pictures, since this machine has built no shortlist of them."""
        return self.catalog.row_count > MAX_EXACT and has_usearch() and self._shortlist is None

    @cached_property
    def _free_rows(self) -> NDArray[np.int64]:
        return np.array(self.catalog.free_rows(), np.int64)

    @cached_property
    def _shortlist(self) -> Shortlist | None:
        path = self.path / SHORTLIST
        if not path.exists() or self.catalog.row_count <= MAX_EXACT or not has_usearch():
            return None
        with contextlib.suppress(RuntimeError):  # damaged: score every picture until `add` rebuilds it
            if stamp_of(path) == self.catalog.shortlist_stamp():  # usearch may crash on an untrusted file
                return Shortlist(path, self._shape[1], view=True)
        return None

    def refresh(self) -> None:
        """Bring the shortlist up to date with the catalog and drop cached values."""
        for name in ("_free_rows", "_shortlist"):
            self.__dict__.pop(name, None)
        path, new, free = self.path / SHORTLIST, self.catalog.not_in_shortlist(), self.catalog.free_rows()
        if self.catalog.row_count <= MAX_EXACT or not has_usearch():
            return
        many_free = 5 * len(free) > self.catalog.row_count  # they slow a graph down
        if not path.exists() or many_free or stamp_of(path) != self.catalog.shortlist_stamp():
            path.unlink(missing_ok=True)
            new = [file.row for file in self.catalog.all()]
        try:
            shortlist = Shortlist(path, self._shape[1], view=False)
        except RuntimeError:  # damaged
            path.unlink()
            self.refresh()
            return
        shortlist.remove(free)
        for rows, embeds in self.blocks(np.array(new, np.int64)):
            shortlist.add(rows.tolist(), one_vector(embeds))
        if new or not path.exists():
            shortlist.save()
            self.catalog.record_shortlist(new, stamp_of(path))

    def _reranked(self, hits: Sequence[Hit], text: str, cancelled: Callable[[], bool]) -> list[Hit]:
        """Order hits by Match.score. Pictures that can no longer be read are left out."""
        reranked: list[Hit] = []
        for start in range(0, len(hits), RERANK_BATCH):
            if cancelled():
                break
            readable = []
            for hit in hits[start : start + RERANK_BATCH]:
                with contextlib.suppress(ImageError, OSError):
                    readable.append((hit, self.model.prepare(picture_at(hit.path, hit.offset, hit.length))))
            if readable:
                features = self.model.features([rgb for _, rgb in readable])
                matches = self.model.match_features(features, [text] * len(readable))
                for (hit, _), match in zip(readable, matches, strict=True):
                    reranked.append(replace(hit, score=match.score, probability=match.probability))
        return sorted(reranked, key=lambda hit: -hit.score)


def _load_embedded() -> Model:
    from ..loading import load

    return load()
