"""What the gallery's rooms hand on: a picture to be read, what could not be read, where pictures are looked for."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Picture:
    """A picture to be read: a file, or bytes in a shard, or bytes that came through standard input."""

    name: str  # as it is shown and written down
    path: str
    offset: int = 0
    size: int = -1  # of the bytes in a shard; -1: the whole file
    data: bytes | None = None

    def source(self) -> str | bytes:
        """What an image may be given as: a path or bytes. Raises OSError."""
        if self.data is not None:
            return self.data
        if self.size < 0:
            return self.path
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    @property
    def in_file(self) -> bool:
        """Whether it is a file of its own, so that another can stand beside it."""
        return self.data is None and self.size < 0


@dataclass(frozen=True)
class Fault:
    """What could not be read, and why, in one line."""

    name: str
    why: str


@dataclass(frozen=True)
class Sources:
    """Where pictures are looked for."""

    paths: Sequence[str] = ()
    lists: Sequence[str] = ()  # files of one path a line (or between null characters); "-" is standard input
    recursive: bool = False

    @property
    def single(self) -> bool:
        """Whether it is one image by its very name."""
        return len(self.paths) == 1 and not self.lists and not _is_many(self.paths[0])

    @property
    def once(self) -> bool:
        """Whether what they say can be read but once: from standard input, or a pipe."""
        return "-" in self.paths or not all(map(os.path.isfile, self.lists))


def _is_many(path: str) -> bool:
    return os.path.isdir(path) or is_shard(path) or is_glob(path)


def is_shard(path: str) -> bool:
    """Whether it names a shard of WebDataset."""
    return path.endswith(".tar") and os.path.isfile(path)


def is_glob(path: str) -> bool:
    """Whether it is a pattern, and no file's name."""
    return glob.has_magic(path) and not os.path.lexists(path)
