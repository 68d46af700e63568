"""Prints the pictures that a search found, or copies them."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..bundle.regular_files import open_regular
from ..errors import one_line, utf8_name
from ..untrusted.image_format import HEAD, format_of
from .outputs.tables import json_line
from .tar_samples import picture_at

if TYPE_CHECKING:
    from .index import Hit


def format_hits(hits: Sequence[Hit], as_json: bool) -> str:
    """Return score<TAB>path lines or JSON lines. Cosines after scores of the matching head are marked."""
    if not as_json:
        shown = (_score(hit, hits[0].probability is not None) for hit in hits)
        return "".join(f"{score}\t{one_line(str(hit.path))}\n" for score, hit in zip(shown, hits, strict=True))
    found = []
    for hit in hits:
        row: dict[str, object] = {"image": utf8_name(str(hit.path)), "score": round(hit.score, 6)}
        if hit.probability is not None:
            row["probability"] = round(hit.probability, 6)
        found.append(json_line(row).decode())
    return "".join(found)


def _score(hit: Hit, reranked: bool) -> str:
    """reranked: whether the first hits have scores of the matching head."""
    return f"{hit.score:.3f}" + (" cosine" if reranked and hit.probability is None else "")


def copy_hits(hits: Sequence[Hit], folder: Path) -> list[str]:
    """Copy pictures into a folder, with the rank before each name. Return errors."""
    folder.mkdir(parents=True, exist_ok=True)
    digits, failed = max(2, len(str(len(hits)))), []
    for rank, hit in enumerate(hits, 1):
        target = folder / f"{rank:0{digits}d}-{hit.path.name}"
        partial = folder / f".{rank:0{digits}d}.partial"
        try:
            with _open(picture_at(hit.path)) as picture, open(partial, "wb") as copy:
                if not format_of(picture.peek(HEAD)):
                    raise OSError(0, "it is not a picture")  # a malicious index may name any file
                shutil.copyfileobj(picture, copy)
            os.replace(partial, target)
        except OSError as error:
            partial.unlink(missing_ok=True)
            failed.append(f"cannot copy {str(hit.path)!r}: {error.strerror}")
    return failed


def _open(picture: Path | bytes) -> io.BufferedReader:
    if isinstance(picture, bytes):
        return io.BufferedReader(io.BytesIO(picture))
    return open(open_regular(picture), "rb")
