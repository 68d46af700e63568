"""Pools: captions of other pictures, whose nearest ones guide a new caption (engines/runtime/caption_pool.h).

A pool in the words of a field teaches a model these words without training.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..bundle.atomic import write_file
from ..bundle.fingerprint import fingerprint
from ..bundle.regular_files import open_regular, read_bounded
from ..errors import OptionError, one_line
from ..language import Prompt
from ..native import native

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..native import CaptionPool
    from ..pipeline import Pipeline

MAX_UNBUILT = 20_000  # captions of a text file that are embedded when it is used: half a minute of nano's time
_MAX_TEXT, _MAX_LINE = 1 << 30, 1000  # bytes of all captions; characters of one
_CODE_WIDTH = 96  # numbers of a caption's code: its embedding's main directions
_BATCH = 256  # captions that are embedded together


def read_pool(path: str | os.PathLike[str], pipeline: Pipeline) -> CaptionPool:
    """Open a pool that `blip2rt pool build` wrote, or a text file with one caption a line. Raises OptionError."""
    name = one_line(os.fspath(path))
    try:
        with open(open_regular(path), "rb") as file:
            built = native.CaptionPool.is_pool(file.read(64))
        captions = [] if built else read_captions(path)
    except OSError as error:
        raise OptionError(f"cannot read the pool {name!r}: {error.strerror or error}") from None
    if len(captions) > MAX_UNBUILT:
        fix = f"build it once: blip2rt pool build {name} --out FILE"
        raise OptionError(f"the pool {name!r} has {len(captions):,} captions, more than {MAX_UNBUILT:,}: {fix}")
    if not built:
        return native.CaptionPool.of_bytes(_packed(captions, pipeline))
    try:
        pool = native.CaptionPool(os.fspath(path))
    except RuntimeError as error:
        raise OptionError(f"cannot use the pool {name!r}: {error}; build it again with blip2rt pool build") from None
    if pool.fingerprint != _fingerprint(pipeline.bundle):
        raise OptionError(f"the pool {name!r} is of another model: build it again with blip2rt pool build")
    return pool


def build_pool(
    path: str | os.PathLike[str], out: Path, pipeline: Pipeline, progress: Callable[[int, int], object] | None = None
) -> int:
    """Embed a text file with one caption a line, and write a pool. Return how many captions it has. Raises OptionError.

    progress(done, all): called after each batch of captions.
    """
    try:
        captions = read_captions(path)
    except OSError as error:
        raise OptionError(f"cannot read {one_line(os.fspath(path))!r}: {error.strerror or error}") from None
    write_file(out, _packed(captions, pipeline, progress))
    return len(captions)


def restamp(path: Path, out: Path, bundle: Bundle) -> None:
    """Copy a pool for a bundle whose embeddings and tokens are the same, but whose files are not."""
    write_file(out, native.CaptionPool.with_fingerprint(path.read_bytes(), _fingerprint(bundle)))


def read_captions(path: str | os.PathLike[str]) -> list[str]:
    """Read a text file with one caption a line, as models write them, each once. Raises OSError and OptionError."""
    name = one_line(os.fspath(path))
    try:
        lines = read_bounded(path, _MAX_TEXT).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise OptionError(f"{name!r} is not UTF-8: give a text file with one caption a line") from None
    captions = [*dict.fromkeys(native.clean_caption(line) for line in lines if native.has_words(line))]
    if not captions:
        raise OptionError(f"{name!r} has no captions: give a text file with one caption a line")
    if long := [each for each in captions if len(each) > _MAX_LINE]:
        raise OptionError(f"{name!r} has a line of {len(long[0]):,} characters, {long[0][:30]!r}...: give captions")
    return captions


def _packed(captions: Sequence[str], pipeline: Pipeline, progress: Callable[[int, int], object] | None = None) -> bytes:
    """Captions -> the contents of a pool's file; the core reads it."""
    language = pipeline.language
    vocab_size, tokens = language.spec.vocab_size, [language.encode_more(Prompt(caption)) for caption in captions]
    parts = []
    for start in range(0, len(captions), _BATCH):
        parts.append(pipeline.judge.text_embeds(captions[start : start + _BATCH]))
        if progress is not None:
            progress(min(start + _BATCH, len(captions)), len(captions))
    embeds = np.concatenate(parts)  # (N, E)
    _, directions = np.linalg.eigh(embeds.T @ embeds)
    projection = np.ascontiguousarray(directions[:, ::-1][:, :_CODE_WIDTH])  # (E, D)
    codes = np.ascontiguousarray(embeds @ projection)
    return native.CaptionPool.pack(_fingerprint(pipeline.bundle), projection, codes, tokens, vocab_size)


def _fingerprint(bundle: Bundle) -> str:
    """Of what a pool depends on: the embeddings and the language model's tokens."""
    assert bundle.manifest.llm is not None
    tokenizer = bundle.file(bundle.manifest.llm.tokenizer).read_bytes()
    return hashlib.sha256(fingerprint(bundle).encode() + tokenizer).hexdigest()
