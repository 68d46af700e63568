"""Paths, folders, globs, lists and shards -> pictures, one by one and in an order that is the same each time.

A folder's pictures are told by their content: a file whose first bytes are no image's is passed over, unless its name
promises one. Names that begin with a dot are passed over too. Names come in order, a folder's files before its
folders; each folder is entered once, by whatever links it is reached, and so is each that `**` of a pattern stands for.
What cannot be read is a Fault in its place.
"""

from __future__ import annotations

import codecs
import glob
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO

from ..untrusted.image_format import HEAD, head_of, kind_of, looks_named
from .members import pictures_of
from .pictures import Fault, Picture, Sources, is_glob, is_shard

_SEPARATOR = f"[{re.escape(os.sep + (os.altsep or ''))}]"
_ANY_FOLDERS = re.compile(rf"(?:^|(?<={_SEPARATOR}))\*\*(?:{_SEPARATOR}+|$)")  # ** as a part of a path by itself


def walk(sources: Sources) -> Iterator[Picture | Fault]:
    """The pictures of `sources` in order. What is named itself is taken as it is; what is found is taken once."""
    walker = _Walker(sources.recursive)
    for path in sources.paths:
        yield from walker.standard_input() if path == "-" else walker.path(path)
    for name in sources.lists:
        try:
            with _open_list(name) as lines:
                for path in _entries(lines):
                    yield from walker.path(path)
        except OSError as error:
            yield Fault(name, f"cannot read the list {name!r}: {error.strerror}")


def more_than(count: int, sources: Sources) -> bool:
    """Whether there are more pictures than `count`, as far as can be told before they are read."""
    if sources.single or sources.once:
        return not sources.single
    return next(islice(walk(sources), count, None), None) is not None


def expanded(path: str) -> Iterator[str | Fault]:
    """A path itself; of a pattern what fits it, or a fault where nothing does. Two `**` may fit a file twice."""
    found = None
    for found in _fitting(path) if is_glob(path) else [path]:
        yield found
    if found is None:
        yield Fault(path, f"no file fits {path!r}: quote the pattern, and look at its folder")


def _fitting(pattern: str) -> Iterator[str | Fault]:
    """What fits a pattern. glob.glob does so, too, but its `**` follows links in a circle."""
    head, *rest = _ANY_FOLDERS.split(pattern, maxsplit=1)
    if not rest:
        yield from sorted(glob.iglob(pattern), key=os.fsencode)
        return
    entered: set[tuple[int, int]] = set()
    bases = sorted(filter(os.path.isdir, glob.iglob(os.path.dirname(head))), key=os.fsencode) if head else [""]
    for base in bases:
        for each in _folders(base, True, entered):
            if isinstance(each, Fault):
                yield each
            else:
                yield from _fitting(os.path.join(glob.escape(each[0]), rest[0] or "*"))


def _folders(path: str, recursive: bool, entered: set[tuple[int, int]]) -> Iterator[tuple[str, list[str]] | Fault]:
    """A folder and the names of its files, then those of its folders. entered: folders that are left out; it grows."""
    stack = [path]  # of names, so that no depth is too deep
    while stack:
        folder = stack.pop()
        try:
            status = os.stat(folder or os.curdir)
            if (status.st_dev, status.st_ino) in entered:
                continue
            names = sorted(os.listdir(folder or os.curdir), key=os.fsencode)
        except OSError as error:
            yield Fault(folder, f"cannot read the folder {folder!r}: {error.strerror}")
            continue
        entered.add((status.st_dev, status.st_ino))
        files: list[str] = []
        within: list[str] = []
        for name in names:
            if not name.startswith("."):
                (within if os.path.isdir(os.path.join(folder, name)) else files).append(name)
        yield folder, files
        if recursive:
            stack += [os.path.join(folder, name) for name in reversed(within)]


class _Walker:
    """What was seen already. It keeps a number for each picture, and no names."""

    def __init__(self, recursive: bool) -> None:
        self._recursive = recursive
        self._seen: set[int] = set()
        self._folders: set[tuple[int, int]] = set()

    def path(self, path: str) -> Iterator[Picture | Fault]:
        if os.path.isdir(path):
            yield from self._folder(path)
        elif is_shard(path):
            yield from pictures_of(path)
        elif is_glob(path):
            for each in expanded(path):
                if isinstance(each, Fault):
                    yield each
                else:
                    yield from self._folder(each) if os.path.isdir(each) else self._file(each, True)
        else:
            self._is_new(path)
            yield Picture(path, path)

    def standard_input(self) -> Iterator[Picture | Fault]:
        """An image, or a list of names, whichever comes. A name alone is taken for neither."""
        if sys.stdin is None:
            yield Fault("-", "- is standard input, which is closed: give a file, or send the image through a pipe")
            return
        data = sys.stdin.buffer.read()
        if kind_of(data[:HEAD]) or not _is_text(data):
            yield Picture("-", "-", data=data)
        elif b"\n" not in data and b"\0" not in data:
            yield Fault("-", "standard input holds no image, but text: give a list of paths by --from-file -")
        else:
            for path in _entries(iter([data])):
                yield from self.path(path)

    def _folder(self, path: str) -> Iterator[Picture | Fault]:
        for each in _folders(path, self._recursive, self._folders):
            if isinstance(each, Fault):
                yield each
            else:
                folder, names = each
                for name in names:
                    yield from self._file(os.path.join(folder, name), False)

    def _file(self, path: str, named: bool) -> Iterator[Picture | Fault]:
        """A file that was found: a picture, a fault, or nothing. named: a pattern of the user's fits it."""
        promised = named or looks_named(path)
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                return
            kind = kind_of(head_of(path))
        except FileNotFoundError:  # it went while the folder was read, or is a link that leads nowhere
            if os.path.islink(path) and promised:
                yield Fault(path, f"{path!r} is a link that leads nowhere")
            return
        except OSError as error:
            if promised:
                yield Fault(path, f"cannot read {path!r}: {error.strerror}")
            return
        if (kind or promised) and self._is_new(path):
            yield Picture(path, path)

    def _is_new(self, path: str) -> bool:
        key = hash(os.path.abspath(path))
        if key in self._seen:
            return False
        self._seen.add(key)
        return True


def _is_text(data: bytes) -> bool:
    """Whether bytes may be names, in lines or between null characters."""
    if not data.strip():
        return False
    try:
        return all(letter >= " " or letter in "\0\t\r\n" for letter in data[:4096].decode("utf-8", "surrogateescape"))
    except ValueError:
        return False


def _open_list(name: str) -> IO[bytes]:
    if name != "-":
        return open(name, "rb")
    if sys.stdin is None:
        raise OSError(0, "standard input is closed")
    return sys.stdin.buffer


def _entries(chunks: Iterable[bytes]) -> Iterator[str]:
    """The paths of a list: between null characters where it has any, else one a line. Empty ones are left out."""
    left, ends, mark = b"", b"\n", codecs.BOM_UTF8
    for chunk in chunks:
        chunk, mark = chunk.removeprefix(mark), b""
        if b"\0" in chunk:
            ends = b"\0"
        *whole, left = (left + chunk).split(ends)
        for entry in whole:
            yield from _entry(entry, ends)
    yield from _entry(left, ends)


def _entry(entry: bytes, ends: bytes) -> Iterator[str]:
    name = os.fsdecode(entry.rstrip(b"\r") if ends == b"\n" else entry)
    if name.strip():
        yield name
