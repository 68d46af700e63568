"""Types shared by the gallery's modules: a picture to read, a failure, and where to look for pictures."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import OptionError, reason
from ..install_hints import pip_install


@dataclass(frozen=True)
class Picture:
    """A picture to read: a file or URL, bytes inside a shard, or bytes from standard input."""

    name: str  # shown to the user and written to outputs
    path: str
    offset: int = 0
    size: int = -1  # of the bytes inside a shard; -1: the whole file
    data: bytes | None = None
    folder: str = ""  # the folder in which the walk found it; "": named by the user
    remote_stamp: tuple[int, int] | None = None  # size and time of a URL's object

    def source(self) -> str | bytes:
        """The image argument for a model: a path or bytes. Raises OSError."""
        if self.data is not None:
            return self.data
        if is_url(self.path):
            return read_url(self.path, self.offset, self.size)
        if self.size < 0:
            return self.path
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def stamp(self) -> tuple[int, int]:
        """Size and time (ns) of its file, or of its shard. Raises OSError."""
        if self.remote_stamp is not None:
            return self.remote_stamp
        status = os.stat(self.path)
        return status.st_size, status.st_mtime_ns

    @property
    def in_file(self) -> bool:
        """Whether the picture has a file of its own, which can have a sidecar."""
        return self.data is None and self.size < 0 and not is_url(self.path)


class UrlPath(type(Path())):  # type: ignore[misc]  # the system's class
    """The URL of an object or a folder as a path, whose text keeps both slashes."""

    def __str__(self) -> str:
        return str(super().__str__()).replace("\\", "/").replace(":/", "://", 1)

    def exists(self, **options: bool) -> bool:
        """Whether it exists, which only a walk finds out."""
        return True


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


def is_url(path: str) -> bool:
    """Whether a path is a URL, such as s3://bucket/shards."""
    return "://" in path and not os.path.lexists(path)


def is_shard(path: str) -> bool:
    """Whether a path is a WebDataset shard."""
    return path.endswith(".tar") and os.path.isfile(path)


def is_glob(path: str) -> bool:
    """Whether a path is a pattern and not the name of an existing file."""
    return glob.has_magic(path) and not os.path.lexists(path)


def read_url(url: str, offset: int = 0, size: int = -1) -> bytes:
    """Return an object or a range of it. Raise OSError."""
    try:
        with file_system(url).open_input_file(split_url(url)[1]) as file:
            file.seek(offset)
            return bytes(file.read(None if size < 0 else size))
    except (OSError, ValueError) as error:
        raise OSError(0, reason(error), url) from None


def split_url(url: str) -> tuple[str, str, str]:
    """Return the scheme, the path that pyarrow takes, and the options with their question mark."""
    scheme, _, rest = url.partition("://")
    path, mark, query = rest.partition("?")
    return scheme, path.rstrip("/") or "/", mark + query


def file_system(url: str) -> Any:
    """Return pyarrow's file system of a URL. Raise OptionError if pyarrow is missing."""
    scheme, path, query = split_url(url)
    return _opened(scheme, "" if scheme == "file" else path.partition("/")[0], query)


@lru_cache(maxsize=8)
def _opened(scheme: str, bucket: str, query: str) -> Any:
    try:
        from pyarrow import fs
    except ImportError:
        raise OptionError(f"{scheme}:// needs pyarrow: {pip_install('parquet')}") from None
    return fs.FileSystem.from_uri(f"{scheme}://{bucket}/{query}")[0]
