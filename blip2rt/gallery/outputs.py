"""What a run writes, and how it knows what is done: the outputs themselves. Files beside the pictures stand here."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..bundle.atomic import write_file
from ..errors import OptionError
from ..untrusted.image_format import EXTENSIONS, head_of, kind_of
from .pictures import Fault, Picture

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no other picture could be written either


@dataclass(frozen=True)
class Described:
    """What was said of a picture."""

    name: str
    captions: Sequence[str]
    score: float  # of the first caption; see language.Scored
    model: str
    ms: float = 0.0  # its share of the graphs' time
    truncated: bool = False  # the first caption; see language.Scored

    def row(self, timed: bool = False) -> dict[str, object]:
        """A line of JSON, as docs/json.md has it. timed: with its time, which is not the same twice."""
        ms = round(self.ms, 1) if timed else None
        return {"image": self.name, "captions": list(self.captions), "score": self.score, "truncated": self.truncated,
                "model": self.model, "ms": ms}  # fmt: skip


class Sink(Protocol):
    """A place where descriptions go."""

    def todo(self, picture: Picture) -> bool | Fault:
        """Whether the picture is still to be written; a fault where it cannot be."""

    def write(self, picture: Picture, described: Described) -> None:
        """Write it whole or not at all. Raises OSError."""

    def finish(self, failed: bool) -> None:
        """Bring what was written to its last form. Not called where the run was broken off. failed: all pictures."""

    def close(self) -> None:
        """Let go of files."""


class Beside:
    """A file beside each picture, with its name and another extension. `content` is what subclasses say."""

    def __init__(self, extension: str, overwrite: bool) -> None:
        self._extension = checked_extension(extension)
        self._overwrite = overwrite
        self._claimed: dict[int, int] = {}  # this run's files, and the picture of each

    def todo(self, picture: Picture) -> bool | Fault:
        target = self._target(picture)
        if not picture.in_file:
            return Fault(picture.name, f"nothing can stand beside {picture.name!r}: give --out")
        fix = "rename it, or give --out or another --caption-extension"
        if target == picture.path:
            return Fault(picture.name, f"{target!r} would be written over itself: {fix}")
        key, own = hash(os.path.abspath(target)), hash(os.path.abspath(picture.path))
        if key in self._claimed:
            same = self._claimed[key] == own
            return False if same else Fault(picture.name, f"{target!r} is already another picture's: {fix}")
        self._claimed[key] = own
        wrong = why_not(target)
        if wrong:
            return Fault(picture.name, f"{wrong}: {fix}")
        if not self._overwrite and self._is_done(target):
            return False
        if not os.access(os.path.dirname(target) or ".", os.W_OK):
            return Fault(picture.name, f"cannot write {target!r}: its folder is read-only; give --out")
        return True

    def write(self, picture: Picture, described: Described) -> None:
        target = self._target(picture)
        write_file(Path(target), self._content(target, described).encode("utf-8", "surrogateescape"))

    def finish(self, failed: bool) -> None:
        pass

    def close(self) -> None:
        pass

    def _target(self, picture: Picture) -> str:
        return os.path.splitext(picture.path)[0] + self._extension

    def _is_done(self, target: str) -> bool:
        """Whether the file is there. An empty one says nothing: it was made by something that failed."""
        try:
            return os.stat(target).st_size > 0
        except OSError:
            return False

    def _content(self, target: str, described: Described) -> str:
        raise NotImplementedError


class Text(Beside):
    """photo.txt beside photo.jpg: a caption a line."""

    def _content(self, target: str, described: Described) -> str:
        return "".join(f"{caption}\n" for caption in described.captions)


def why_not(target: str) -> str:
    """Why a file is not written, or "": a picture is never written over, whatever its name."""
    if os.path.isdir(target):
        return f"{target!r} is a folder"
    folder = os.path.dirname(target)
    if folder and not os.path.isdir(folder):
        return f"{target!r} cannot be written, for there is no folder {folder!r}"
    try:
        picture = os.path.isfile(target) and kind_of(head_of(target))
    except OSError as error:
        return f"cannot read {target!r}: {error.strerror}"
    return f"{target!r} is a picture and is not written over" if picture else ""


def check_target(target: str) -> None:
    """Raise OptionError for a file that is not written."""
    wrong = why_not(target)
    if wrong:
        raise OptionError(f"{wrong}: give another file")


def check_empty(folder: Path, what: str, left: str | None = None) -> None:
    """Raise OptionError for a folder that holds something already. what: what it is then, and the fix; left: what a
    killed run may have left there."""
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"{folder} is no folder: give another one")
    if folder.exists() and any(path.name != left for path in folder.iterdir()):
        raise OptionError(f"{folder} is {what}")


def checked_extension(extension: str) -> str:
    """An extension that no picture has and that stays in its folder. Raises OptionError."""
    if not extension.strip(".") or os.path.basename(extension) != extension:
        raise OptionError(f"caption_extension is {extension!r}: give an extension, as .txt or .caption")
    extension = extension if extension.startswith(".") else f".{extension}"
    if extension.lower() in EXTENSIONS:
        raise OptionError(f"caption_extension is {extension!r}, as pictures have: give .txt or .caption")
    return extension
