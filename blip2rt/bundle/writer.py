"""Write a bundle completely or not at all. Knows files, sizes and hashes, not their contents."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from ..errors import BundleError
from ..native import native
from .atomic import MARKER, AtomicFolder
from .checksum import sha256_of
from .manifest import FileEntry, Manifest, to_json
from .names import MANIFEST
from .reader import Bundle, read

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class BundleWriter:
    """Writes a bundle into a hidden folder, which is renamed to its destination when finished.

    Leaving the `with` block without finish(), or with an error, leaves nothing. Raises BundleError: the destination
    exists (unless `overwrite`), exists and is not a bundle (always), cannot be written, or the disk is full.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        self.path = Path(os.path.abspath(path))
        self.overwrite = overwrite
        self._atomic = AtomicFolder(self.path)
        self._finished = False

    @property
    def folder(self) -> Path:
        """Where to write the files, in subfolders or not; exists inside the `with` block."""
        return self._atomic.folder

    def __enter__(self) -> BundleWriter:  # noqa: PYI034  # typing.Self came with Python 3.11
        try:
            self._atomic.__enter__()
            check_destination(self.path, self.overwrite)
        except OSError as error:
            raise self._write_error(error) from error
        except BundleError as error:
            self._atomic.__exit__(type(error), error, None)
            raise
        return self

    def finish(self, manifest: Manifest) -> Bundle:
        """Add sizes and hashes to `manifest`, write it, and rename the folder to its destination."""
        try:
            names = sorted(f.relative_to(self.folder).as_posix() for f in self.folder.rglob("*") if f.is_file())
            entries = {name: _entry(self.folder / name) for name in names if name not in (MARKER, MANIFEST)}
            manifest = replace(manifest, files=entries)
            text = to_json(manifest)
            faults = native.manifest_faults(text)
            assert not faults, f"the bundle violates its contract: {'; '.join(faults)}"
            (self.folder / MANIFEST).write_bytes(text)
            check_destination(self.path, self.overwrite)
            self._atomic.finish()
            self._finished = True
        except OSError as error:
            raise self._write_error(error) from error
        return read(self.path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._atomic.__exit__(kind, error, traceback)
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            raise self._write_error(error) from error
        assert error is not None or self._finished, "BundleWriter.finish() was not called"

    def _write_error(self, error: OSError) -> BundleError:
        if error.errno in _DISK_FULL:
            return BundleError(f"no space left on the disk of {self.path.parent}: free some and run again")
        return BundleError(f"cannot write the bundle {self.path}: {error.strerror or error}")


def check_destination(path: Path, overwrite: bool) -> None:
    """Raise BundleError unless a bundle may be written to `path`."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / MANIFEST).is_file():
        raise BundleError(f"{path} exists and is not a bundle: choose another place, or remove it yourself")
    if not overwrite:
        raise BundleError(f"{path} exists already: choose another place, or give --overwrite")


def _entry(file: Path) -> FileEntry:
    return FileEntry(file.stat().st_size, sha256_of(file).hex())
