"""Files of an evaluation: predictions that survive a killed run, and results that are written atomically."""

from __future__ import annotations

import contextlib
import glob
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from blip2rt.bundle.atomic import write_file
from blip2rt.errors import Blip2rtError

if TYPE_CHECKING:  # imports torch, which a bundle needs for several processes only
    from ..loop.parallel import Parallel

T = TypeVar("T")


@dataclass(frozen=True)
class Sampling:
    """Captions sampled per image. top_p: nucleus; seed: the same seed samples the same captions."""

    count: int
    top_p: float
    seed: int


class Predictions:
    """Predictions by id, saved in a file of JSON lines if one is given, from which the next run resumes.

    Several processes share the work: each adds its part, in FILE.RANK, and `complete` exchanges and merges the parts.
    The next run also resumes from parts that a killed run left.
    """

    def __init__(
        self,
        file: Path | None,
        record: dict[str, Any],
        fix: str = "remove it, or name another file by --predictions",
        parallel: Parallel | None = None,
    ) -> None:
        """record: everything that the predictions depend on. Raise Blip2rtError, with the fix, if the file has another
        record.
        """
        self.file, self.record, self.parallel = file, record, parallel
        self.found: dict[Any, Any] = {}
        if parallel is None or parallel.world == 1:
            self._load(fix)
            return
        fault = ""
        if parallel.main:
            try:
                self._load(fix)
            except Blip2rtError as error:
                fault = str(error)
        parallel.raise_together(fault)
        self.found = parallel.gather_objects(self.found)[0]
        if file is not None and not parallel.main:
            self.file = Path(f"{file}.{parallel.rank}")
            write_atomically(self.file, self._text({}))

    def _load(self, fix: str) -> None:
        if self.file is None:
            return
        header = {"of": self.record}
        lines = list(_whole_lines(self.file))
        if len(lines) > 1 and lines[0] != header:
            before = lines[0].get("of") or {}
            other = [
                f"{name} was {before.get(name)!r}" for name in self.record if before.get(name) != self.record[name]
            ]
            raise Blip2rtError(f"{self.file} belongs to a run with other settings ({'; '.join(other)}): {fix}")
        parts = [*self.file.parent.glob(f"{glob.escape(self.file.name)}.[0-9]*")]
        for part in map(list, map(_whole_lines, parts)):
            lines = [*(lines or [header]), *(part[1:] if part and part[0] == header else ())]
        self.found = {line["id"]: line["said"] for line in lines[1:]}
        write_atomically(self.file, self._text(self.found))  # without the truncated line of a killed run
        for part_file in parts:
            part_file.unlink()

    def _text(self, found: dict[Any, Any]) -> str:
        lines = [{"of": self.record}, *({"id": id, "said": value} for id, value in found.items())]
        return "".join(json.dumps(line) + "\n" for line in lines)

    def share(self, todo: list[T]) -> list[T]:
        """Return this process's part of the work: consecutive items."""
        if self.parallel is None:
            return todo
        rank, world = self.parallel.rank, self.parallel.world
        return todo[len(todo) * rank // world : len(todo) * (rank + 1) // world]

    def complete(self) -> None:
        """Wait for the parts of all processes, after which each has all predictions, and one file holds them."""
        if self.parallel is None or self.parallel.world == 1:
            return
        for found in self.parallel.gather_objects(self.found):
            self.found |= found
        if self.file is not None and self.parallel.main:
            write_atomically(self.file, self._text(self.found))
        self.parallel.raise_together()  # a part stays until the file holds it
        if self.file is not None and not self.parallel.main:
            write_atomically(self.file, self._text({}))

    def close(self) -> None:
        """Remove this process's part."""
        if self.parallel is not None and not self.parallel.main and self.file is not None:
            self.file.unlink(missing_ok=True)

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
