"""A self-contained HTML page of an evaluation: totals, then pictures, what was wanted and what was said, worst first.

Knows rows and numbers, nothing about tasks.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from PIL import Image

from blip2rt.image import load_rgb

_SIDE, _SMALL = 220, 90  # pixels of thumbnails, as in the style
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .8rem;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}article{display:flex;gap:1rem;border-top:1px solid #ddd;padding:1rem 0}
img{max-width:220px;max-height:220px;border-radius:4px;flex:none;align-self:flex-start}ul{margin:.3rem 0;color:#666}
.said{font-weight:600}.score{float:right;color:#a00;margin-left:1rem}.note{color:#666}
.small img{max-width:90px;max-height:90px}
"""


@dataclass(frozen=True)
class Row:
    """One prediction; the lower its score, the further up it stands."""

    image: Path
    said: str
    references: Sequence[str]
    score: float
    shown: str  # the score as it is written
    title: str = ""  # a question, or the image's name
    found: Sequence[Path] = field(default=())  # images that are what was said


def render(
    title: str, about: Mapping[str, object], totals: Mapping[str, Mapping[str, float]], rows: Sequence[Row], most: int
) -> str:
    """The page. totals: column -> measure -> value; most: rows that are shown."""
    shown = sorted(rows, key=lambda row: row.score)[:most]
    left = f"<p class=note>{len(rows) - len(shown)} better ones are left out.</p>" if len(shown) < len(rows) else ""
    facts = "".join(f"<tr><td>{escape(str(name))}<td>{escape(str(value))}" for name, value in about.items())
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(title)}</h1><table>{facts}</table>{_table(totals)}"
        f"<h2>Worst first</h2>{''.join(map(_article, shown))}{left}</html>\n"
    )


def _table(totals: Mapping[str, Mapping[str, float]]) -> str:
    measures = list(dict.fromkeys(name for column in totals.values() for name in column))
    head = "".join(f"<th>{escape(column)}" for column in totals)
    body = "".join(
        f"<tr><td>{escape(name)}" + "".join(f"<td>{_number(column.get(name))}" for column in totals.values())
        for name in measures
    )
    return f"<table><tr><th>{head}{body}</table>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _article(row: Row) -> str:
    references = "".join(f"<li>{escape(text)}" for text in row.references)
    found = "".join(_picture(path, _SMALL) for path in row.found)
    return (
        f"<article>{_picture(row.image, _SIDE)}<div><span class=score>{escape(row.shown)}</span>"
        f"<div class=note>{escape(row.title)}</div><div class=said>{escape(row.said)}</div>"
        f"<div class=small>{found}</div><ul>{references}</ul></div></article>"
    )


def _picture(path: Path, side: int) -> str:
    """A thumbnail, in the page itself."""
    image = load_rgb(str(path))
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=80)
    return f'<img alt="{escape(path.name)}" src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">'
