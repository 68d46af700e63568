"""Finds pictures in paths, folders, globs, lists and shards, in a reproducible order.

Pictures in a folder are recognised by content: a file whose first bytes are not those of an image is ignored, unless
it has an image's extension. Names that begin with a dot are ignored. A folder's files come before its subfolders,
sorted by name. Each folder is entered once, whatever links lead to it. Anything unreadable is a Failure in its place.
"""

import codecs
import glob
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO

from ..object_storage import Url, is_url
from ..untrusted.image_format import format_of, has_image_name, read_head
from .sources import Failure, Picture, Sources, is_glob, is_shard

_MAGIC = re.compile(r"[*?\[]")


def walk(sources: Sources) -> Iterator[Picture | Failure]:
    """Yield the pictures of `sources`. Paths given explicitly are always yielded, found ones once."""
    walker = _Walker(sources.recursive)
    for path in sources.paths:
        yield from walker.standard_input() if path == "-" else walker.path(path)
    for name in sources.lists:
        try:
            with _open_list(name) as lines:
                for path in _split_list(lines):
                    yield from walker.path(path, literal=True)
        except OSError as error:
            yield Failure.unreadable(name, error, "the list ")


def has_more_than(count: int, sources: Sources) -> bool:
    """Whether there are more than `count` pictures. Sources that can be read only once are assumed to have more."""
    if sources.single or sources.once:
        return not sources.single
    return next(islice(walk(sources), count, None), None) is not None


def _list_folders(
    path: str, recursive: bool, entered: set[tuple[int, int]]
) -> Iterator[tuple[str, list[str]] | Failure]:
    """Yield a folder with the names of its files, then its subfolders. entered: folders to skip, extended here."""
    stack = [path]  # instead of recursion, which deep folders would exhaust
    while stack:
        folder = stack.pop()
        try:
            status = os.stat(folder or os.curdir)
            if (status.st_dev, status.st_ino) in entered:
                continue
            names = sorted(os.listdir(folder or os.curdir), key=os.fsencode)
        except OSError as error:
            yield Failure.unreadable(folder, error, "the folder ")
            continue
        entered.add((status.st_dev, status.st_ino))
        files: list[str] = []
        subfolders: list[str] = []
        for name in names:
            if not name.startswith("."):
                (subfolders if os.path.isdir(os.path.join(folder, name)) else files).append(name)
        yield folder, files
        if recursive:
            stack += [os.path.join(folder, name) for name in reversed(subfolders)]


class _Walker:
    """Yields each found picture once. Remembers a hash of each path, not the path."""

    def __init__(self, recursive: bool) -> None:
        self._recursive = recursive
        self._visited: set[int] = set()
        self._folders: set[tuple[int, int]] = set()

    def path(self, path: str, literal: bool = False) -> Iterator[Picture | Failure]:
        """literal: the path comes from a list, whose lines are not patterns."""
        if os.path.isdir(path):
            yield from self._folder(path, path)
        elif is_url(path):
            from .remote import walk_url

            yield from walk_url(Url.parse(path), self._recursive)
        elif is_shard(path):
            from .tar_samples import shard_pictures

            yield from shard_pictures(path)
        elif is_glob(path) and not literal:
            base = os.path.dirname(path[: _MAGIC.search(path).start()]) or os.curdir  # type: ignore[union-attr]
            if "**" in path:
                yield Failure(path, f"{path!r} has **: give the folder, and -r for its subfolders")
            elif not (matches := sorted(glob.iglob(path), key=os.fsencode)):
                yield Failure(path, f"no file matches {path!r}: quote the pattern, and check its folder")
            else:
                for match in matches:
                    if is_shard(match):
                        yield from self.path(match)
                    else:
                        yield from self._folder(match, base) if os.path.isdir(match) else self._file(match, base, True)
        else:
            self._is_new(path)
            yield Picture(path, path)

    def standard_input(self) -> Iterator[Picture | Failure]:
        if sys.stdin is None:
            yield Failure("-", "- is standard input, which is closed: give a file, or pipe the image in")
        else:
            yield Picture("-", "-", data=sys.stdin.buffer.read())

    def _folder(self, path: str, base: str) -> Iterator[Picture | Failure]:
        """base: the folder that the user named."""
        for item in _list_folders(path, self._recursive, self._folders):
            if isinstance(item, Failure):
                yield item
            else:
                folder, names = item
                for name in names:
                    yield from self._file(os.path.join(folder, name), base, matched=False)

    def _file(self, path: str, base: str, matched: bool) -> Iterator[Picture | Failure]:
        """Yield a picture, a failure, or nothing. matched: the user's pattern matches the file."""
        expected = matched or has_image_name(path)
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                return
            kind = format_of(read_head(path))
        except FileNotFoundError:  # removed since the folder was read, or a dangling link
            if os.path.islink(path) and expected:
                yield Failure(path, f"{path!r} is a link to a missing file")
            return
        except OSError as error:
            if expected:
                yield Failure.unreadable(path, error)
            return
        if (kind or expected) and self._is_new(path):
            yield Picture(path, path, folder=base)

    def _is_new(self, path: str) -> bool:
        key = hash(os.path.abspath(path))
        if key in self._visited:
            return False
        self._visited.add(key)
        return True


def _open_list(name: str) -> IO[bytes]:
    if name != "-":
        return open(name, "rb")
    if sys.stdin is None:
        raise OSError(0, "standard input is closed")
    return sys.stdin.buffer


def _split_list(chunks: Iterable[bytes]) -> Iterator[str]:
    """Yield the paths of a list: null-separated if it contains a null byte, else one a line. Skip empty ones."""
    rest, end, mark = b"", b"\n", codecs.BOM_UTF8
    for chunk in chunks:
        chunk, mark = chunk.removeprefix(mark), b""
        if b"\0" in chunk:
            end = b"\0"
        *complete, rest = (rest + chunk).split(end)
        yield from _decode_paths(complete, end)
    yield from _decode_paths([rest], end)


def _decode_paths(entries: Iterable[bytes], end: bytes) -> Iterator[str]:
    names = (os.fsdecode(entry.rstrip(b"\r") if end == b"\n" else entry) for entry in entries)
    return (name for name in names if name.strip())
