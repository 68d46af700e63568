"""Files of an evaluation: predictions that survive a killed run, and results that are written atomically."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from blip2rt.bundle.atomic import write_file
from blip2rt.errors import Blip2rtError


class Predictions:
    """Predictions by id, saved in a file of JSON lines if one is given, from which the next run resumes."""

    def __init__(
        self,
        file: Path | None,
        record: dict[str, Any],
        fix: str = "remove it, or name another file by --predictions",
    ) -> None:
        """record: everything that the predictions depend on. Raise Blip2rtError, with the fix, if the file has another
        record.
        """
        self.file = file
        self.found: dict[Any, Any] = {}
        if file is None:
            return
        lines = list(_whole_lines(file))
        if len(lines) > 1 and lines[0] != {"of": record}:
            before = lines[0].get("of") or {}
            other = [f"{name} was {before.get(name)!r}" for name in record if before.get(name) != record[name]]
            raise Blip2rtError(f"{file} belongs to a run with other settings ({'; '.join(other)}): {fix}")
        self.found = {line["id"]: line["said"] for line in lines[1:]}
        text = "".join(json.dumps(line) + "\n" for line in [{"of": record}, *lines[1:]])
        write_atomically(file, text)  # without the truncated line of a killed run

    def add(self, ids: Iterable[Any], values: Sequence[Any]) -> None:
        """Store predictions, also on disk."""
        new = dict(zip(ids, values, strict=True))
        self.found |= new
        if self.file is not None:
            with _reporting(self.file), self.file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"id": id, "said": value}) + "\n" for id, value in new.items())


def _whole_lines(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            yield json.loads(line)
        except ValueError:
            return


@contextlib.contextmanager
def _reporting(file: Path) -> Iterator[None]:
    """Turn OSErrors of a file into a Blip2rtError."""
    try:
        yield
    except OSError as error:
        raise Blip2rtError(f"{file} cannot be written: {error.strerror}") from error


def require_writable(*files: Path | None) -> None:
    """Raise Blip2rtError if a file cannot be written, before hours are spent on its contents."""
    for file in files:
        if file is None:
            continue
        if not file.parent.is_dir():
            raise Blip2rtError(f"{file} cannot be written: the folder {file.parent} does not exist")
        if file.is_dir() or not os.access(file.parent, os.W_OK):
            raise Blip2rtError(f"{file} cannot be written: name a file in a folder that you may write to")


def write_atomically(file: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it. Raise Blip2rtError."""
    with _reporting(file):
        write_file(file, text.encode())
