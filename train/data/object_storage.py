"""Shards in object storage (s3://, gs://, ...) through fsspec. A sample is a range of its object; nothing is cached.

A whole object is read once, to index it. The index is kept in the training's `features` folder.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from blip2rt.errors import Blip2rtError, reason
from blip2rt.system import read_range
from blip2rt.untrusted.tar_headers import tar_headers

if TYPE_CHECKING:
    import tarfile
    from collections.abc import Iterator

_INDEXING_BLOCK = 8 << 20  # bytes read at once to index a shard


def is_remote(path: str) -> bool:
    """Whether a path is a URL."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) is not None


@dataclass(frozen=True, order=True)
class RemoteShard:
    """A shard in object storage, with the methods of a Path that shards.py needs. Raises OSError and Blip2rtError."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        return posixpath.basename(self.url)

    @property
    def folder(self) -> str:
        """URL of the folder."""
        return posixpath.dirname(self.url)

    @property
    def stem(self) -> str:
        """A name that is a file's, and unique: shards of two buckets may have the same name."""
        digest = hashlib.sha256(self.folder.encode()).hexdigest()[:8]
        return f"{digest}-{posixpath.splitext(self.name)[0]}"

    def version(self) -> tuple[int, int]:
        """The size of the object, and a number that differs between its versions."""
        found = _file_system(self.url).info(self.url)
        facts = [str(found.get(name)) for name in ("ETag", "etag", "generation", "mtime", "LastModified", "created")]
        return int(found["size"]), int(hashlib.sha256(" ".join(facts).encode()).hexdigest()[:15], 16)

    def headers(self) -> Iterator[tuple[tarfile.TarInfo, int, int]]:
        """Yield what tar_headers does."""
        with _open(self.url) as file:
            yield from tar_headers(self.url, file, self.version()[0])

    def read(self, size: int, offset: int) -> bytes:
        """Return a range of the object."""
        return bytes(_file_system(self.url).cat_file(self.url, start=offset, end=offset + size))


Shard = Path | RemoteShard


class ShardReader:
    """An open shard, of which ranges are read. Raises OSError."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._descriptor = (
            -1 if isinstance(shard, RemoteShard) else os.open(shard, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        )

    def read(self, size: int, offset: int) -> bytes:
        """Return a range. Raise ValueError if the shard ends within it."""
        remote = isinstance(self._shard, RemoteShard)
        content = self._shard.read(size, offset) if remote else read_range(self._descriptor, size, offset)  # type: ignore
        if len(content) != size:
            raise ValueError("the shard ends within it")
        return content

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


def shard_version(shard: Shard) -> tuple[int, int]:
    """The size of a shard, and a number that differs between its versions."""
    if isinstance(shard, RemoteShard):
        return shard.version()
    status = shard.stat()
    return status.st_size, status.st_mtime_ns


def expand_remote(pattern: str) -> list[RemoteShard]:
    """Return the objects of a pattern with *, or of a URL that ends with .tar. Raise Blip2rtError."""
    system = _file_system(pattern)
    scheme = pattern.partition("://")[0]
    if not re.search(r"[*?\[]", pattern):
        return [RemoteShard(pattern)]
    try:
        found = sorted(str(name) for name in system.glob(pattern))
    except OSError as error:
        raise Blip2rtError(f"cannot list {pattern}: {reason(error)}; check the URL and its credentials") from None
    return [RemoteShard(f"{scheme}://{name.partition('://')[2] or name}") for name in found]


def _open(url: str) -> IO[bytes]:
    opened: IO[bytes] = _file_system(url).open(url, "rb", block_size=_INDEXING_BLOCK, cache_type="readahead")
    return opened


_FORKED: dict[int, dict[str, Any]] = {}  # file systems by process: their connections do not survive a fork


def _file_system(url: str) -> Any:
    """The file system of a URL. Raise Blip2rtError if its package is missing."""
    import fsspec

    scheme = url.partition("://")[0]
    own = _FORKED.setdefault(os.getpid(), {})
    if scheme not in own:
        try:
            own[scheme] = fsspec.filesystem(scheme, skip_instance_cache=scheme != "memory")
        except ImportError as error:
            raise Blip2rtError(f"{url} needs a package: {reason(error)}") from None
        except ValueError:
            raise Blip2rtError(f"{url}: there are no {scheme}:// URLs; fsspec knows s3, gs, abfs, http, ...") from None
    return own[scheme]
