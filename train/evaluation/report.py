"""A self-contained HTML page of an evaluation: totals, then pictures with references and predictions, worst first."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from blip2rt.errors import OptionError, boundary
from blip2rt.image import load_rgb

_NOT_MEASURED = ("seconds", "length_penalty")  # among the totals
_SIDE, _SMALL = 220, 90  # pixels of thumbnails, as in the style
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}caption{text-align:left;font-weight:600}
td,th{padding:.25rem .8rem;border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child{text-align:left}
.about td{text-align:left}
article{display:flex;gap:1rem;border-top:1px solid #ddd;padding:1rem 0}
img{max-width:220px;max-height:220px;border-radius:4px;flex:none;align-self:flex-start}ul{margin:.3rem 0;color:#666}
.prediction{font-weight:600}.score{float:right;color:#a00;margin-left:1rem}.note{color:#666}
.small img{max-width:90px;max-height:90px}
"""

Table = Mapping[str, Mapping[str, float]]  # column -> measure -> value


@dataclass(frozen=True)
class Row:
    """One prediction; lower scores come first."""

    image: Path
    prediction: str
    references: Sequence[str]
    score: float
    shown: str  # the score as text
    title: str = ""  # a question, or the image's name
    found: Sequence[Path] = field(default=())  # retrieved images
    section: str = ""  # rows are grouped by it


def render(title: str, about: Mapping[str, object], tables: Mapping[str, Table], rows: Sequence[Row], most: int) -> str:
    """Render the page. tables: by title; most: rows shown per section."""
    sections: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.score):
        sections.setdefault(row.section, []).append(row)
    parts = "".join(_section(name, sections[name], most) for name in sorted(sections))
    facts = "".join(f"<tr><td>{escape(str(name))}<td>{escape(str(value))}" for name, value in about.items())
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(title)}</h1><table class=about>{facts}</table>"
        f"{''.join(_table(*table) for table in tables.items())}{parts}</html>\n"
    )


def _section(name: str, rows: Sequence[Row], most: int) -> str:
    """Render the rows of a section, worst first."""
    shown = "".join(map(_article, rows[:most]))
    left = f"<p class=note>{len(rows) - most} better ones are not shown.</p>" if most < len(rows) else ""
    head = f"<h2>{escape(name)}: worst first</h2>" if name else "<h2>Worst first</h2>"
    return f"<section>{head}{left}{shown}</section>"


def _table(title: str, table: Table) -> str:
    measures = list(dict.fromkeys(name for column in table.values() for name in column))
    head = "".join(f"<th>{escape(column)}" for column in table)
    body = "".join(
        f"<tr><td>{escape(name)}" + "".join(f"<td>{_number(column.get(name))}" for column in table.values())
        for name in measures
    )
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    return f"<table>{caption}<thead><tr><th>{head}</thead><tbody>{body}</tbody></table>"


def changes(file: Path, totals: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """The measures in the totals of an earlier evaluation and in these, by name. Raise OptionError if they are not of
    the same task and pictures."""
    with boundary(f"--compare {file} cannot be read", OptionError):
        before = dict(json.loads(file.read_text(encoding="utf-8")))
    for name in ("task", "data", "images"):
        if before.get(name) != totals[name]:
            raise OptionError(
                f"--compare {file}: its {name} is {before.get(name)!r}, and {totals[name]!r} here: evaluate "
                "both models on the same pictures"
            )
    shared = [name for name, value in totals.items() if isinstance(value, float) and name not in _NOT_MEASURED]
    return {name: (before[name], totals[name]) for name in shared if isinstance(before.get(name), float)}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _article(row: Row) -> str:
    references = "".join(f"<li>{escape(text)}" for text in row.references)
    found = "".join(_picture(path, _SMALL) for path in row.found)
    return (
        f"<article>{_picture(row.image, _SIDE)}<div><span class=score>{escape(row.shown)}</span>"
        f"<div class=note>{escape(row.title)}</div><div class=prediction>{escape(row.prediction)}</div>"
        f"<div class=small>{found}</div><ul>{references}</ul></div></article>"
    )


def _picture(path: Path, side: int) -> str:
    """Render a thumbnail, embedded in the page."""
    image = load_rgb(str(path))
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=80)
    return f'<img alt="{escape(path.name)}" src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">'
