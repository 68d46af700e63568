"""Types shared by the gallery's modules: a picture to read, a failure, and where to look for pictures."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass

from ..object_storage import Url, is_url


@dataclass(frozen=True)
class Picture:
    """A picture to read: a file or an object, bytes inside a shard, or bytes from standard input."""

    name: str  # shown to the user and written to outputs
    path: str
    offset: int = 0
    size: int = -1  # of the bytes inside a shard; -1: the whole file
    data: bytes | None = None
    folder: str = ""  # the folder in which the walk found it; "": named by the user
    url: Url | None = None  # of the object that is read in place of a file
    url_stamp: tuple[int, int] = (0, 0)  # its size and time

    def source(self) -> str | bytes:
        """The image argument for a model: a path or bytes. Raises OSError."""
        if self.data is not None:
            return self.data
        if self.url is not None:
            return self.url.read(self.size, self.offset)
        if self.size < 0:
            return self.path
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def stamp(self) -> tuple[int, int]:
        """Size and time (ns) of its file, or of its shard. Raises OSError."""
        if self.url is not None:
            return self.url_stamp
        status = os.stat(self.path)
        return status.st_size, status.st_mtime_ns

    @property
    def in_file(self) -> bool:
        """Whether the picture has a file of its own, which can have a sidecar."""
        return self.data is None and self.size < 0 and self.url is None


@dataclass(frozen=True)
class Failure:
    """A picture, folder or list that could not be processed, and the reason in one line."""

    name: str
    reason: str

    @classmethod
    def unreadable(cls, name: str, error: OSError, what: str = "") -> Failure:
        """The failure for an OSError while reading. what: such as "the folder "."""
        return cls(name, f"cannot read {what}{name!r}: {error.strerror}")


@dataclass(frozen=True)
class Sources:
    """Where to look for pictures."""

    paths: Sequence[str] = ()
    lists: Sequence[str] = ()  # files with one path a line, or null-separated; "-" is standard input
    recursive: bool = False

    @property
    def single(self) -> bool:
        """Whether this is exactly one image, given by its path."""
        return len(self.paths) == 1 and not self.lists and not _holds_many(self.paths[0])

    @property
    def once(self) -> bool:
        """Whether the list of paths can be read only once, as from standard input or a pipe."""
        return "-" in self.paths or any(map(is_url, self.paths)) or not all(map(os.path.isfile, self.lists))


def _holds_many(path: str) -> bool:
    return os.path.isdir(path) or is_shard(path) or is_glob(path) or is_url(path)


def is_shard(path: str) -> bool:
    """Whether a path is a WebDataset shard."""
    return path.endswith(".tar") and os.path.isfile(path)


def is_glob(path: str) -> bool:
    """Whether a path is a pattern and not the name of an existing file."""
    return glob.has_magic(path) and not os.path.lexists(path)
