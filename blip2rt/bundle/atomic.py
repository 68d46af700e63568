"""Write a folder, or a file, completely or not at all.

    with AtomicFolder("out/nano") as atomic:
        ...write files into atomic.folder...
        atomic.finish()  # renames the folder to out/nano

Until finish() the files are in a hidden folder next to the destination. On Linux, an existing folder and the new one
are exchanged in one step (RENAME_EXCHANGE). If the file system cannot do that, the old one is moved aside for a moment;
a run that finds it there puts it back. A marker file distinguishes our temporary folders from the user's.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import IO

from ..errors import names_file
from ..system import lock_file
from .regular_files import open_regular, require_regular

MARKER = ".blip2rt-partial"  # in a folder that is being written or deleted
_MAX_TRIES = 10  # until a temporary folder is our own
_MAX_NAME_BYTES = 240  # of a file's name in that of its temporary file; Linux allows 255
_RENAME_EXCHANGE, _AT_FDCWD = 2, -100  # Linux


class AtomicFolder:
    """A folder that becomes `path` when it is finished, or leaves nothing. Raises OSError.

    Concurrent writers of one path are independent: the last to finish wins. The next run removes what killed runs left
    behind.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.realpath(path))
        self._folder: Path | None = None
        self._lock: IO[str] | None = None

    @property
    def folder(self) -> Path:
        """Where to write the files, in subfolders or not; exists inside the `with` block."""
        assert self._folder is not None, "use it in a `with` block"
        return self._folder

    def __enter__(self) -> AtomicFolder:  # noqa: PYI034  # typing.Self came with Python 3.11
        self.path.parent.mkdir(parents=True, exist_ok=True)
        clean(self.path)
        try:
            for _ in range(_MAX_TRIES):  # another writer may mistake a folder without a lock for an abandoned one
                self._folder = self.path.with_name(f".{self.path.name}.{os.urandom(4).hex()}.partial")
                self._folder.mkdir()
                with contextlib.suppress(FileNotFoundError):
                    (self._folder / MARKER).touch()
                    self._lock = _try_lock(self._folder)
                if self._lock is not None:
                    break
        except BaseException as error:  # including Ctrl-C: there will be no __exit__
            self.__exit__(type(error), error, None)
            raise
        return self

    def finish(self) -> None:
        """Flush the files to disk, then rename the folder to its destination."""
        _sync(self.folder)
        old: Path | None = None
        if not self.path.exists():
            self.folder.rename(self.path)
        else:
            _mark(self.path)
            if _exchange(self.folder, self.path):
                old = self.folder
            else:
                old = self.path.with_name(f".{self.path.name}.{os.urandom(4).hex()}.aside")
                self.path.rename(old)
                self.folder.rename(self.path)
        self._folder = None
        self._unlock()
        _unmark(self.path)
        _sync_names(self.path.parent)
        if old is not None:
            _remove(old)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._unlock()
        if self._folder is not None:
            _remove(self._folder)
            self._folder = None

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def clean(path: Path) -> None:
    """Remove what killed runs left of a folder; put it back if it was moved aside."""
    for aside in _left(path, "aside"):
        if not path.exists():
            aside.rename(path)
        else:
            _remove(aside)
    for left in (path, *_left(path, "partial")):
        lock = _try_lock(left)
        if lock is None:
            continue
        lock.close()
        if left == path:
            _unmark(left)
        else:
            _remove(left)


def _left(path: Path, kind: str) -> list[Path]:
    found = list(path.parent.glob(f".{glob.escape(path.name)}.*.{kind}"))
    for folder in found:
        with contextlib.suppress(OSError):  # killed before or after it had a marker: it is empty
            folder.rmdir()
    return [folder for folder in found if (folder / MARKER).is_file()]


def _remove(folder: Path) -> None:
    """Remove a folder, its marker last, so that the next run recognises what a killed one leaves."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != MARKER:
                path.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def partial_of(path: Path) -> Path:
    """The hidden temporary file of `write_file`, which a killed run leaves behind."""
    return path.with_name(f".{os.fsdecode(os.fsencode(path.name)[:_MAX_NAME_BYTES])}.part")


def write_file(path: Path, data: bytes | memoryview, follow: bool = True) -> None:
    """Write `data` to `path`, or leave the old file. Raises OSError.

    Links are followed, and pipes and the like written to directly, unless `follow` is false: then they are errors. An
    existing file keeps its mode. The temporary file has a fixed name, so that the next writer reuses what a killed run
    left.
    """
    if not follow:
        with contextlib.suppress(FileNotFoundError):
            require_regular(path, follow=False)
    given, path = path, Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        with names_file(given):
            path.write_bytes(data)
        return
    partial = partial_of(path)
    file = _open_locked(partial)
    try:
        with names_file(given), file:
            if os.fstat(file.fileno()).st_nlink > 1:
                raise OSError(errno.EMLINK, f"{partial} is a second name of another file")
            file.truncate(0)
            if path.exists():
                shutil.copymode(path, partial)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise


def _open_locked(partial: Path) -> IO[bytes]:
    """Open and lock a file that still has its name. Raises OSError."""
    while True:
        file = os.fdopen(open_regular(partial, os.O_RDWR | os.O_CREAT, follow=False), "r+b")
        lock_file(file, wait=True)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(partial)):
                return file
        file.close()  # another writer has renamed it


def discard(folder: Path) -> None:
    """Remove a folder. It is renamed first, so that a killed removal leaves nothing that looks complete."""
    _mark(folder)
    unnamed = folder.with_name(f".{folder.name}.{os.urandom(4).hex()}.partial")
    folder.rename(unnamed)
    _remove(unnamed)


def _mark(folder: Path) -> None:
    with contextlib.suppress(OSError):  # the folder is read-only
        (folder / MARKER).touch()


def _unmark(folder: Path) -> None:
    with contextlib.suppress(OSError):
        (folder / MARKER).unlink()


def _try_lock(folder: Path) -> IO[str] | None:
    """The open marker of a folder; None if there is none, or another running process holds it."""
    try:
        file = open(folder / MARKER, "r+")  # noqa: SIM115  # held open for the writer's life
    except OSError:
        return None
    if lock_file(file):  # on Windows, an open file cannot be removed, which is enough
        return file
    file.close()
    return None


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step. Return False if the system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    paths = _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other)
    return rename is not None and rename(*paths, _RENAME_EXCHANGE) == 0


def _sync(folder: Path) -> None:
    """Flush every file of a folder to disk, so that a crash leaves no empty files."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            _sync_names(path)
        elif path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def _sync_names(folder: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # not supported by this file system
        pass
    finally:
        os.close(descriptor)
