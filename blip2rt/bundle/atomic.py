"""Writes a folder, or a file, whole or not at all. Knows names and renames, nothing about what is in it.

    with AtomicFolder("out/nano") as whole:
        ...write files into whole.folder...
        whole.finish()  # the folder takes its place

Until finish() the files lie in a hidden folder beside the place. On Linux an existing folder and the new one change
places in one step (RENAME_EXCHANGE); where the file system cannot do that, the old one is moved aside for a moment,
and a run that finds it there puts it back. A marker file tells folders of ours from the user's own.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType
from typing import IO

MARKER = ".blip2rt-partial"  # in a folder that is being written, or about to be thrown away
_TRIES = 10  # folders that a writer begins until one is its own
_NAME = 240  # bytes of a file's name that its neighbour has: a name may have 255
_EXCHANGE, _HERE = 2, -100  # RENAME_EXCHANGE and AT_FDCWD of Linux


class AtomicFolder:
    """A folder that becomes `path` when it is finished, or leaves nothing. Raises OSError.

    Several writers of one path do not disturb each other: the last one that finishes stays. What killed runs left
    behind is removed by the next run there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.realpath(path))
        self._folder: Path | None = None
        self._lock: IO[str] | None = None

    @property
    def folder(self) -> Path:
        """Where to write the files, sub-folders allowed; exists inside the `with` block."""
        assert self._folder is not None, "use it in a `with` block"
        return self._folder

    def __enter__(self) -> AtomicFolder:  # noqa: PYI034  # typing.Self came with Python 3.11
        self.path.parent.mkdir(parents=True, exist_ok=True)
        clean(self.path)
        try:
            for _ in range(_TRIES):  # another writer may take a folder that has no lock yet for an abandoned one
                self._folder = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.partial")
                self._folder.mkdir()
                with contextlib.suppress(FileNotFoundError):
                    (self._folder / MARKER).touch()
                    self._lock = _try_lock(self._folder)
                if self._lock is not None:
                    break
        except BaseException as error:  # Ctrl-C, too: no __exit__ will come
            self.__exit__(type(error), error, None)
            raise
        return self

    def finish(self) -> None:
        """Bring the files to the disk, then the folder to its place."""
        _sync(self.folder)
        old: Path | None = None
        if not self.path.exists():
            self.folder.rename(self.path)
        else:
            _mark(self.path)
            if _exchange(self.folder, self.path):
                old = self.folder
            else:
                old = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.aside")
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
    """Remove what killed runs left of a folder; put it back where it was moved aside for one which never came."""
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
        with contextlib.suppress(OSError):  # killed before it had a marker, or after: then it is empty
            folder.rmdir()
    return [folder for folder in found if (folder / MARKER).is_file()]


def _remove(folder: Path) -> None:
    """Remove a folder, its marker last: whoever is killed here leaves what the next run knows for ours."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != MARKER:
                path.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def partial_of(path: Path) -> Path:
    """The hidden neighbour that `write_file` fills first: what a killed run leaves of `path`."""
    return path.with_name(f".{os.fsdecode(os.fsencode(path.name)[:_NAME])}.part")


def write_file(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path`, or leave what was there before. Raises OSError.

    A link is followed; what is no file, as a pipe, is written to. A file that was there keeps its mode. The hidden
    neighbour has one name for each file, so that whoever writes the file again takes what a killed run left.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    partial = partial_of(path)
    file = _own(partial)
    try:
        with file:
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


def _own(partial: Path) -> IO[bytes]:
    """Open a file that no other process writes: it is locked, and the name is still its own. Raises OSError."""
    while True:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(partial, flags, 0o666), "r+b")
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):  # Windows, and file systems without locks
            return file
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(partial)):
                return file
        file.close()  # the other writer has finished, and its file has its name


def discard(folder: Path) -> None:
    """Remove a folder. It loses its name first: killed amid it, nothing that looks whole is left."""
    _mark(folder)
    unnamed = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    folder.rename(unnamed)
    _remove(unnamed)


def _mark(folder: Path) -> None:
    with contextlib.suppress(OSError):  # of a folder that may not be written to, nothing is left behind but itself
        (folder / MARKER).touch()


def _unmark(folder: Path) -> None:
    with contextlib.suppress(OSError):
        (folder / MARKER).unlink()


def _try_lock(folder: Path) -> IO[str] | None:
    """The open marker of a folder; None where there is none, or another living process holds it."""
    try:
        file = open(folder / MARKER, "r+")  # noqa: SIM115  # held open for the writer's life
    except OSError:
        return None
    try:
        import fcntl
    except ImportError:  # Windows: an open file cannot be removed, which is lock enough
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step. Return False where that cannot be done."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    return rename is not None and rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


def _sync(folder: Path) -> None:
    """Bring every file of a folder to the disk, so that no crash leaves an empty one under a good name."""
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
    except OSError:  # file systems that have nothing to bring
        pass
    finally:
        os.close(descriptor)
