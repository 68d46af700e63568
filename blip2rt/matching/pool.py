"""A pool of captions that people wrote, without their pictures: it helps to choose the caption of a new picture.

The candidates are the model's own beams and the pool's captions nearest to the picture. The one that agrees best with
those nearest ones wins: consensus, as in Devlin et al. 2015 (arXiv 1505.04467). A pool in the words of a field teaches
a model these words without training.
"""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bundle.atomic import write_file
from ..bundle.fingerprint import fingerprint
from ..bundle.regular_files import open_regular, read_bounded
from ..errors import OptionError, one_line
from ..text import clean_caption

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..backends import Floats
    from .matcher import Matcher

MAX_UNBUILT = 20_000  # captions of a text file that are embedded when it is used: half a minute of nano's time
_MAGIC = b"blip2rt-pool 1\n"
_MAX_TEXT, _MAX_LINE = 1 << 30, 1000  # bytes of all captions; characters of one
_HEADER_ROOM = 1000  # bytes
_BATCH = 256  # captions that are embedded together
_ROWS = 8192  # captions that are compared at once
_ORDERS = (1, 2, 3, 4)  # of n-grams
_LENGTH_VARIANCE = 36.0  # of CIDEr-D's penalty for another length (Vedantam et al. 2015, section 5.2)

# Chosen on 314 photographs of COCO's and 200 of Flickr8k's development splits, with four pools: recipes/nano/LOG.md.
_LEAST, _MOST, _SHARE = 8, 150, 1 / 1000  # nearest captions: this share of the pool
_OWN_BONUS = 0.03  # what a beam's consensus gains over a caption of the pool
_MARGIN = 0.05  # a caption of the pool is a candidate if its cosine is at most this far below the best beam's


class CaptionPool:
    """Captions and their embeddings. Any thread may use it."""

    def __init__(self, captions: Sequence[str], codes: NDArray[np.int8]) -> None:
        """codes (N, E): text_embeds times 127, rounded"""
        self.captions, self._codes = captions, codes
        counts = Counter(word for caption in captions for word in {*_words(caption)})
        self._rarity = {word: math.log(len(captions) / count) for word, count in counts.items()}
        self._unseen = math.log(len(captions))

    def nearest(self, image_embeds: Floats) -> tuple[NDArray[np.intp], Floats]:
        """image_embeds (Q, E) -> the rows of the nearest captions, in no order, and their cosines"""
        queries = np.ascontiguousarray(image_embeds.T) / np.float32(127)
        blocks = (self._codes[start : start + _ROWS] for start in range(0, len(self._codes), _ROWS))
        cosines = np.concatenate([(block.astype(np.float32) @ queries).max(axis=1) for block in blocks])
        count = min(len(cosines), max(_LEAST, min(_MOST, round(len(cosines) * _SHARE))))
        rows = np.argpartition(-cosines, count - 1)[:count]
        return rows, cosines[rows]

    def choose(self, image_embeds: Floats, beams: Sequence[str], text_embeds: Floats) -> int | str:
        """image_embeds (Q, E), the beams and their text_embeds (B, E) -> the best beam's number, or a pool's caption"""
        rows, cosines = self.nearest(image_embeds)
        near = [self.captions[row] for row in rows]
        agreement = self._consensus([*near, *beams], len(near))
        own = (text_embeds @ image_embeds.T).max(axis=1)
        agreement[: len(near)][cosines < own.max() - _MARGIN] = -1
        agreement[len(near) :] += _OWN_BONUS
        best = int(np.argmax(agreement))
        return near[best] if best < len(near) else best - len(near)

    def _consensus(self, candidates: Sequence[str], references: int) -> NDArray[np.float64]:
        """How well each candidate agrees with the first `references`, without itself (C).

        The mean cosine of n-grams that are weighted by how rare their words are, for n from 1 to 4, with CIDEr-D's
        penalty for another length.
        """
        words = [_words(candidate) for candidate in candidates]
        lengths = np.array([len(each) for each in words], np.float64)
        alike = np.exp(-np.square(lengths[:, None] - lengths[None, :references]) / (2 * _LENGTH_VARIANCE))
        np.fill_diagonal(alike, 0)
        total = np.zeros(len(candidates))
        for order in _ORDERS:
            vectors = self._vectors(words, order)
            total += ((vectors @ vectors[:references].T) * alike).sum(axis=1)
        others = np.full(len(candidates), references)
        others[:references] -= 1
        return total / np.maximum(others, 1) / len(_ORDERS)

    def _vectors(self, texts: Sequence[Sequence[str]], order: int) -> Floats:
        """Texts -> a vector of unit length for each (T, n-grams); zero for shorter texts"""
        columns: dict[tuple[str, ...], int] = {}
        entries = []
        for row, words in enumerate(texts):
            for start in range(len(words) - order + 1):
                gram = tuple(words[start : start + order])
                rarity = sum(self._rarity.get(word, self._unseen) for word in gram) / order
                entries.append((row, columns.setdefault(gram, len(columns)), rarity))
        vectors = np.zeros((len(texts), max(len(columns), 1)), np.float32)
        for row, column, rarity in entries:
            vectors[row, column] += rarity
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-9))


def read_pool(path: str | os.PathLike[str], matcher: Matcher) -> CaptionPool:
    """Open a pool that `blip2rt pool build` wrote, or a text file with one caption a line. Raises OptionError."""
    name = one_line(os.fspath(path))
    try:
        with open(open_regular(path), "rb") as file:
            if file.read(len(_MAGIC)) == _MAGIC:
                return _read_built(name, Path(path), file, matcher)
        captions = read_captions(path)
    except OSError as error:
        raise OptionError(f"cannot read the pool {name!r}: {error.strerror or error}") from None
    if len(captions) > MAX_UNBUILT:
        fix = f"build it once: blip2rt pool build {name} --out FILE"
        raise OptionError(f"the pool {name!r} has {len(captions):,} captions, more than {MAX_UNBUILT:,}: {fix}")
    return CaptionPool(captions, np.concatenate([*_codes(captions, matcher)]))


def build_pool(
    path: str | os.PathLike[str], out: Path, matcher: Matcher, progress: Callable[[int, int], object] | None = None
) -> int:
    """Embed a text file with one caption a line, and write a pool. Return how many captions it has. Raises OptionError.

    progress(done, all): called after each batch of captions.
    """
    try:
        captions = read_captions(path)
    except OSError as error:
        raise OptionError(f"cannot read {one_line(os.fspath(path))!r}: {error.strerror or error}") from None
    parts = []
    for part in _codes(captions, matcher):
        parts.append(part)
        if progress is not None:
            progress(min(len(parts) * _BATCH, len(captions)), len(captions))
    codes, text = np.concatenate(parts), "\n".join(captions).encode()
    packed = zlib.compress(text, 9)
    header: dict[str, Any] = {"model": fingerprint(matcher.bundle), "captions": len(captions), "size": codes.shape[1]}
    header |= {"text": len(text), "crc": zlib.crc32(packed, zlib.crc32(codes.tobytes()))}
    write_file(out, _MAGIC + json.dumps(header).encode() + b"\n" + codes.tobytes() + packed)
    return len(captions)


def read_captions(path: str | os.PathLike[str]) -> list[str]:
    """Read a text file with one caption a line, each once. Raises OSError and OptionError."""
    name = one_line(os.fspath(path))
    try:
        lines = read_bounded(path, _MAX_TEXT).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise OptionError(f"{name!r} is not UTF-8: give a text file with one caption a line") from None
    captions = [*dict.fromkeys(" ".join(line.split()) for line in lines if any(map(str.isalnum, line)))]
    if not captions:
        raise OptionError(f"{name!r} has no captions: give a text file with one caption a line")
    if long := [each for each in captions if len(each) > _MAX_LINE]:
        raise OptionError(f"{name!r} has a line of {len(long[0]):,} characters, {long[0][:30]!r}...: give captions")
    return captions


def _codes(captions: Sequence[str], matcher: Matcher) -> Iterator[NDArray[np.int8]]:
    for start in range(0, len(captions), _BATCH):
        embeds = np.stack(matcher.text_embeds(captions[start : start + _BATCH]))
        yield np.rint(embeds * 127).astype(np.int8)


def _read_built(name: str, path: Path, file: Any, matcher: Matcher) -> CaptionPool:
    """The pool in an open file, behind its first line."""
    damaged = OptionError(f"the pool {name!r} is damaged: build it again with blip2rt pool build")
    try:
        line = file.readline(_HEADER_ROOM)
        header = json.loads(line)
        count, size, length, crc = (header[key] for key in ("captions", "size", "text", "crc"))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise damaged from None
    whole = all(type(each) is int and 0 <= each <= _MAX_TEXT for each in (count, size, length))
    start = len(_MAGIC) + len(line)
    if not whole or start + count * size > os.fstat(file.fileno()).st_size:
        raise damaged
    if header.get("model") != fingerprint(matcher.bundle):
        raise OptionError(f"the pool {name!r} is of another model: build it again with blip2rt pool build")
    codes = np.memmap(path, np.int8, "r", start, (count, size)) if count * size else np.empty((0, 0), np.int8)
    file.seek(start + count * size)
    packed = file.read()
    try:
        text = zlib.decompressobj().decompress(packed, length + 1).decode()
    except (zlib.error, UnicodeDecodeError):
        raise damaged from None
    captions = text.split("\n")
    if len(text.encode()) != length or len(captions) != count or zlib.crc32(packed, zlib.crc32(codes.data)) != crc:
        raise damaged
    return CaptionPool(captions, codes)


def _words(caption: str) -> list[str]:
    return re.findall(r"\w+", clean_caption(caption))
