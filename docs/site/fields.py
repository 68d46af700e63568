"""Docstrings for the site: lines such as `threads: how many` become a list, as they are read in the source.

Used by mkdocs.yml alone; knows text, nothing about blip2rt.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_FIELD = re.compile(r"([a-z_]+(?:, [a-z_]+)*(?:\([\w, ]*\))?): (.+)")


def as_list(text: str) -> str:
    """Lines `name: what it is`, and their continuations -> items of a Markdown list."""
    lines: list[str] = []
    item = False  # whether the line before is of an item
    ended = True  # whether a sentence or an item has ended before this line
    for line in text.splitlines():
        found = _FIELD.fullmatch(line)
        if found and (item or ended):
            lines += [""] * (not item and bool(lines) and bool(lines[-1]))
            lines.append(f"- `{found[1]}`: {found[2]}")
            item = True
        else:
            item = item and bool(line.strip())
            lines.append(f"  {line.strip()}" if item else line)
        ended = not line.strip() or line.rstrip().endswith((".", ":"))
    return "\n".join(lines)


class Fields(griffe.Extension):
    """Applies `as_list` to every docstring; the comment beside a field is the field's."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_list(obj.docstring.value)
        elif obj.is_attribute and obj.parent is not None and obj.parent.is_class and obj.lines:
            comment = obj.lines[-1].partition("  # ")[2]
            if comment and not comment.startswith(("type:", "noqa", "fmt:")):
                obj.docstring = griffe.Docstring(comment, parent=obj)
