"""A file that grows by whole pieces: of a table, a list of faults, a shard. Two runs cannot write one at a time."""

from __future__ import annotations

import contextlib
import os
from typing import IO

from ..errors import OptionError
from .outputs import check_target


class Lines:
    """A file that grows by whole lines, held by one process. Raises OSError, and OptionError where another holds it."""

    def __init__(self, path: str, fresh: bool = False) -> None:
        check_target(path)
        self.path = path
        self._file: IO[bytes] = open(path, "ab", buffering=0)  # noqa: SIM115  # held for the run
        try:
            import fcntl

            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows
            pass
        except OSError:
            self._file.close()
            raise OptionError(f"{path} is being written by another run: wait for it, or give another file") from None
        if fresh:
            self._file.truncate(0)

    def append(self, data: bytes) -> None:
        """Write all of `data`, or nothing. Raises OSError."""
        before = self.size
        written = 0
        try:
            while written < len(data):  # a full disk takes a part, and refuses the rest
                written += os.write(self._file.fileno(), data[written:])
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(before)
            raise OSError(error.errno, error.strerror, self.path) from None

    @property
    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def cut(self, size: int) -> None:
        self._file.truncate(size)

    def sync(self) -> None:
        with contextlib.suppress(OSError):  # a pipe has nothing to bring to a disk
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
