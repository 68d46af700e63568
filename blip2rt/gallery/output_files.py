"""Output files: checks before anything is written, and files that grow. A picture is never overwritten."""

import contextlib
import errno
import os
from pathlib import Path
from typing import IO

from ..bundle.regular_files import open_regular, require_regular
from ..errors import OptionError, names_file
from ..system import lock_file
from ..untrusted.image_format import EXTENSIONS, format_of, read_head


def write_problem(target: str) -> str:
    """Return why a file must not be written, or ""."""
    if os.path.isdir(target):
        return f"{target!r} is a folder"
    folder = os.path.dirname(target)
    if folder and not os.path.isdir(folder):
        return f"{target!r} cannot be written: folder {folder!r} does not exist"
    try:
        picture = os.path.isfile(target) and format_of(read_head(target))
    except OSError as error:
        return f"cannot read {target!r}: {error.strerror}"
    return f"{target!r} is a picture, which is never overwritten" if picture else ""


def sidecar_problem(target: str, folder: str) -> str:
    """Return why a file next to a picture must not be written, or "". folder: where its picture was found, or ""."""
    try:
        require_regular(target, follow=False)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno != errno.EISDIR:
            return f"{target!r} cannot be written: {error.strerror}"
    if folder and not Path(os.path.realpath(os.path.dirname(target))).is_relative_to(os.path.realpath(folder)):
        return f"{target!r} is behind a link that leads out of {folder!r}"
    return write_problem(target)


def check_writable(target: str) -> None:
    """Raise OptionError for a file that must not be written."""
    problem = write_problem(target)
    if problem:
        raise OptionError(f"{problem}: give another file")


def check_empty(folder: Path, problem: str, allowed: str | None = None) -> None:
    """Raise OptionError for a folder that is not empty.

    problem: the message then, with its fix. allowed: a name that an earlier killed run may have left there.
    """
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"{folder} is not a folder: give another one")
    if folder.exists() and any(path.name != allowed for path in folder.iterdir()):
        raise OptionError(f"{folder} is {problem}")


def normalized_extension(extension: str) -> str:
    """Return the extension of a sidecar with its dot. Raises OptionError for a path or the extension of a picture."""
    if not extension.strip(".") or os.path.basename(extension) != extension:
        raise OptionError(f"write is {extension!r}: give an extension such as .txt or .caption")
    extension = extension if extension.startswith(".") else f".{extension}"
    if extension.lower() in EXTENSIONS:
        raise OptionError(f"write is {extension!r}, an extension of pictures: give .txt or .caption")
    return extension


class AppendOnlyFile:
    """A locked file that only grows, by whole records: a table, a list of failures, a shard, a lock.

    Raises OSError, and OptionError if another process holds the lock.
    """

    def __init__(self, path: str, truncate: bool = False, named: bool = True) -> None:
        """named: by the user, who may name a link or a pipe; otherwise only a regular file is opened."""
        check_writable(path)
        self.path, flags = path, os.O_WRONLY | os.O_CREAT | os.O_APPEND
        opened = path if named else open_regular(path, flags, follow=False)
        self._file: IO[bytes] = open(opened, "ab", buffering=0)  # noqa: SIM115  # open until the run ends
        if not lock_file(self._file):
            self._file.close()
            raise OptionError(f"{path} is being written by another run: wait for it, or give another file")
        if truncate:
            self.truncate(0)

    def append(self, data: bytes) -> None:
        """Write all of `data` or nothing. Raises OSError."""
        before = self.size
        written = 0
        try:
            with names_file(self.path):
                while written < len(data):  # a nearly full disk accepts a part before it fails
                    written += os.write(self._file.fileno(), data[written:])
        except OSError:
            with contextlib.suppress(OSError):
                self.truncate(before)
            raise

    @property
    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def truncate(self, size: int) -> None:
        self._file.truncate(size)

    def sync(self) -> None:
        with contextlib.suppress(OSError):  # a pipe cannot be synced
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
