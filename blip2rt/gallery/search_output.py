"""Prints the pictures that a search found, copies them, or shows them on an HTML page."""

from __future__ import annotations

import base64
import html
import io
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from ..bundle.atomic import write_file
from ..bundle.regular_files import open_regular
from ..errors import ImageError, one_line, utf8_name
from ..image import load_rgb
from ..untrusted.image_format import HEAD, format_of
from .output_files import check_empty, check_writable
from .outputs.tables import json_line
from .tar_samples import picture_at

if TYPE_CHECKING:
    from .index import Hit

THUMBNAIL = 320  # pixels of the longer side
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
:root {{ color-scheme: light dark; font: 16px/1.4 system-ui, sans-serif; }}
body {{ margin: 1.5rem; }} ul {{ display: flex; flex-wrap: wrap; gap: 1rem; padding: 0; list-style: none; }}
li {{ width: {width}px; }} img {{ max-width: 100%; }} p {{ margin: .2rem 0; overflow-wrap: anywhere; }}
</style></head><body><h1>{title}</h1><ul>
{items}
</ul></body></html>
"""
_ITEM = (
    '<li><a href="{link}"><img src="data:image/jpeg;base64,{data}" alt="{name}"></a><p>{score}</p><p>{name}</p></li>'
)


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


def check_targets(page: Path | None, folder: Path | None) -> None:
    """Raise OptionError for a page that must not be written, or a folder that is not empty."""
    if page is not None:
        check_writable(str(page))
    if folder is not None:
        check_empty(folder, "not empty: give another --copy-to")


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


def write_html(hits: Sequence[Hit], title: str, path: Path) -> None:
    """Write one HTML file with embedded thumbnails, each linked to its picture. The page loads nothing else."""
    items = []
    for hit in hits:
        score = _score(hit, hits[0].probability is not None)
        score += "" if hit.probability is None else f", probability {hit.probability:.3f}"
        name, link = html.escape(_valid_text(hit.name)), quote(os.fsencode(_relative(hit.path, path.parent)))
        items.append(_ITEM.format(link=link, data=_thumbnail(hit.path), name=name, score=score))
    page = _PAGE.format(title=html.escape(_valid_text(title)), width=THUMBNAIL, items="\n".join(items))
    write_file(path, page.encode())


def _relative(path: Path, folder: Path) -> str:
    """A path relative to a folder."""
    try:
        return os.path.relpath(os.path.abspath(path), os.path.abspath(folder))
    except ValueError:  # on another drive
        return os.path.abspath(path)


def _valid_text(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _thumbnail(path: Path) -> str:
    try:
        image = load_rgb(picture_at(path), THUMBNAIL)
    except (ImageError, OSError):
        return ""
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=80)
    return base64.b64encode(data.getvalue()).decode()
