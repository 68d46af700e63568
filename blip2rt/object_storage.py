"""Objects and folders in object storage (s3://, gs://, file://), through pyarrow.

A URL is an object, a folder, or a pattern with *. After `?`, it may have options of its file system, such as region.
An output that is a URL is written as a copy in the cache folder, and uploaded when it is complete: object by object,
each as a whole.
"""

from __future__ import annotations

import os
import posixpath
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from .errors import Blip2rtError, OptionError, reason
from .install_hints import pip_install
from .system import user_cache


def is_url(path: str) -> bool:
    """Whether a path is a URL, such as s3://bucket/shards."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path) is not None


@dataclass(frozen=True, order=True)
class Url:
    """A URL with the methods of a Path that are needed. Its text leaves out the options. path: begins with the bucket.

    Raises OSError, and OptionError if pyarrow is missing or does not know the scheme.
    """

    scheme: str
    path: str
    options: str = ""

    @classmethod
    def parse(cls, text: str) -> Url:
        scheme, _, rest = text.partition("://")
        path, mark, options = rest.partition("?")
        return cls(scheme, path.rstrip("/") or "/", mark + options)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"

    def __fspath__(self) -> str:
        return str(self)

    def __truediv__(self, name: str) -> Url:
        return replace(self, path=posixpath.join(self.path, name))

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)

    @property
    def parent(self) -> Url:
        return replace(self, path=posixpath.dirname(self.path))

    @property
    def system(self) -> Any:
        """pyarrow's file system."""
        return _open_system(self.scheme, "" if self.scheme == "file" else self.path.partition("/")[0], self.options)

    def exists(self) -> bool:
        """Whether it may exist; only reading finds out."""
        return True

    def stamp(self) -> tuple[int, int]:
        """Return the size and the time (ns) of the object."""
        return self._listed()[0][1]

    def open(self) -> Any:
        """Open the object for reading: a file of pyarrow."""
        with _errors_of(self):
            return self.system.open_input_file(self.path)

    def read(self, size: int = -1, offset: int = 0) -> bytes:
        """Return the object, or a range of it."""
        with self.open() as file, _errors_of(self):
            return bytes(file.read_at(file.size() - offset if size < 0 else size, offset))

    def objects(self, recursive: bool = True) -> list[tuple[Url, tuple[int, int]]]:
        """Return the objects that the URL stands for, sorted by name, with their sizes and times.

        recursive: include a folder's subfolders. Names that begin with a dot are ignored. Raises OptionError.
        """
        try:
            return self._listed(recursive)
        except OSError as error:
            fix = "check the URL, its options and its credentials"
            raise OptionError(f"cannot read {str(self)!r} ({reason(error)}): {fix}") from None

    def _listed(self, recursive: bool = True) -> list[tuple[Url, tuple[int, int]]]:
        pattern = "*" in self.path
        base = self.path.partition("*")[0].rpartition("/")[0] if pattern else self.path
        with _errors_of(self):
            found = [self.system.get_file_info(base)]
            if found[0].type.name == "NotFound":
                raise FileNotFoundError
            if not found[0].is_file:
                from pyarrow import fs

                found = self.system.get_file_info(fs.FileSelector(base, recursive=recursive or pattern))
        found = [each for each in found if each.is_file and "/." not in each.path[len(base) :]]
        if pattern:
            depth = self.path.count("/")
            found = [each for each in found if each.path.count("/") == depth and fnmatch(each.path, self.path)]
        return sorted((replace(self, path=each.path), (each.size, each.mtime_ns)) for each in found)


@contextmanager
def _errors_of(url: Url) -> Iterator[None]:
    """Name the URL in errors of pyarrow."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(2, "there is no such object or folder", str(url)) from None
    except (OSError, ValueError) as error:
        raise OSError(0, reason(error), str(url)) from None


@lru_cache(maxsize=8)
def _open_system(scheme: str, bucket: str, options: str) -> Any:
    try:
        from pyarrow import fs
    except ImportError:
        raise OptionError(f"{scheme}:// needs pyarrow: {pip_install('parquet')}") from None
    return fs.FileSystem.from_uri(f"{scheme}://{bucket}/{options}")[0]


@contextmanager
def local_output(out: str, record: str = "") -> Iterator[str]:
    """Where to write an output. A URL's is uploaded at the end; after an error, it stays for the next run to resume."""
    if not is_url(out):
        yield out
        return
    url = Url.parse(out)
    copy = checkout(url, record)
    yield str(copy)
    if copy.exists():
        publish(copy, url, record)


def checkout(out: Path | Url, record: str = "") -> Path:
    """Return where to write an output: `out`, or for a URL its copy, which a killed run or the bucket began.

    record: end of the name of the object that is uploaded last, so that its version is the whole output's: of a file
    beside `out`, or of one inside it (/...). Only that, or all files inside, are downloaded. Raises Blip2rtError.
    """
    if isinstance(out, Path):
        return out
    last = replace(out, path=out.path + record)
    version = _version(last)
    copy = copies_folder(out.parent) / sha256(f"{out} {version}".encode()).hexdigest()[:20] / out.name
    if not copy.parent.exists():
        begun = copy.parent.with_name(f".{copy.parent.name}.{os.getpid()}")
        inside = begun / out.name if record.startswith("/") else begun
        inside.mkdir(parents=True, exist_ok=True)
        for each, _ in [] if version is None else (out if inside != begun else last).objects(recursive=False):
            _transfer(each, inside / each.name)
        begun.rename(copy.parent)
    return copy


def publish(copy: Path, out: Path | Url, record: str = "") -> None:
    """Upload what `checkout` returned, with the files beside and inside it, and remove it. Raises Blip2rtError."""
    if isinstance(out, Path):
        return
    files = [path for path in copy.parent.rglob("*") if path.is_file() and not path.name.startswith(".")]
    for path in sorted(files, key=lambda path: (path == Path(f"{copy}{record}"), path)):
        _transfer(path, out.parent / path.relative_to(copy.parent).as_posix())
    shutil.rmtree(copy.parent)


def copies_folder(folder: Url) -> Path:
    """The folder in the cache that has the copies of a folder's objects."""
    return user_cache() / "outputs" / sha256(str(folder).encode()).hexdigest()[:20]


def is_copy(path: Path) -> bool:
    """Whether a path is in the cache's copies, and its place means nothing."""
    return user_cache() / "outputs" in path.parents


def _version(url: Url) -> tuple[int, int] | None:
    """The stamp of an object; None if its bucket lacks it. Raises OptionError for a bucket that does not exist."""
    with suppress(FileNotFoundError):
        return url.stamp()
    bucket = url.path.partition("/")[0] or "/"
    if url.system.get_file_info(bucket).type.name == "NotFound":
        raise OptionError(f"{url} cannot be written: there is no bucket {bucket!r}")
    return None


def _transfer(source: Path | Url, target: Path | Url) -> None:
    from pyarrow import fs

    places, systems = [], []
    for each in (source, target):
        places.append(each.path if isinstance(each, Url) else str(each))
        systems.append(each.system if isinstance(each, Url) else fs.LocalFileSystem())
    try:
        fs.copy_files(*places, *systems)
    except (OSError, ValueError) as error:
        fix = "the same command tries again"
        raise Blip2rtError(f"cannot copy {source} to {target} ({reason(error)}): {fix}") from None
