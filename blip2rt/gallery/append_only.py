"""A locked file that only grows, by whole records: a table, a list of failures, a shard, a lock."""

from __future__ import annotations

import contextlib
import os
from typing import IO

from ..bundle.regular_files import open_regular
from ..errors import OptionError, names_file
from ..system import lock_file
from .path_checks import check_writable


class AppendOnlyFile:
    """A file opened for appending and locked by this process.

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
