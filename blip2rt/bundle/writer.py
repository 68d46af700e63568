"""Writes a bundle whole or not at all. Knows files, sizes and hashes; what is in them is the caller's business."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import BundleError
from .faults import manifest_faults
from .manifest import FileEntry, Manifest, to_json
from .names import FORMAT, FORMAT_VERSION, MANIFEST
from .reader import Bundle, read

_LOCK = ".lock"


class BundleWriter:
    """Writes a bundle whole or not at all: into a temporary folder beside its place, renamed when finished.

    Leave the `with` block without finish(), or with an error, and nothing remains. What a killed run left behind
    is hidden beside the destination and removed by the next run there. Raises BundleError: the destination
    exists (unless `overwrite`), exists and is not a bundle (always), cannot be written, or the disk is full.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        self.path = Path(os.path.abspath(path))
        self.overwrite = overwrite
        self._folder: Path | None = None
        self._lock: Any = None

    @property
    def folder(self) -> Path:
        """Where to write the files, sub-folders allowed; exists inside the `with` block."""
        assert self._folder is not None, "use BundleWriter in a `with` block"
        return self._folder

    def __enter__(self) -> BundleWriter:  # noqa: PYI034  # typing.Self came with Python 3.11
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._clean()
            self._check_destination()
            self._folder = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", suffix=".partial", dir=self.path.parent))
            self._folder.chmod(0o777 & ~_umask())
            self._lock = _try_lock(self._folder)
        except OSError as error:
            raise self._write_error(error) from error
        return self

    def finish(self, manifest: Manifest) -> Bundle:
        """Adds sizes and hashes to `manifest`, writes it, and moves the folder to its place."""
        try:
            names = sorted(f.relative_to(self.folder).as_posix() for f in self.folder.rglob("*") if f.is_file())
            entries = {name: _entry(self.folder / name) for name in names if name not in (_LOCK, MANIFEST)}
            manifest = replace(manifest, files=entries)
            faults = manifest_faults(manifest)
            assert not faults, f"the bundle breaks its contract: {'; '.join(faults)}"
            data = {"format": FORMAT, "format_version": FORMAT_VERSION, **to_json(manifest)}
            with open(self.folder / MANIFEST, "w", encoding="utf-8", newline="\n") as file:
                json.dump(data, file, indent=2, ensure_ascii=False)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            self._check_destination()
            self._unlock()
            old = self.path.with_name(f".{self.path.name}.old")
            if self.path.exists():
                self.path.rename(old)
            self.folder.rename(self.path)
            self._folder = None
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise self._write_error(error) from error
        return read(self.path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        unfinished = self._folder is not None
        self._unlock()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise self._write_error(error) from error
        assert error is not None or not unfinished, "BundleWriter.finish() was not called"

    def _check_destination(self) -> None:
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        if not (self.path / MANIFEST).is_file():
            raise BundleError(f"{self.path} exists and is not a bundle: choose another place, or remove it yourself")
        if not self.overwrite:
            raise BundleError(f"{self.path} exists already: choose another place, or allow it to be overwritten")

    def _clean(self) -> None:
        """Removes what killed runs left; a bundle moved aside just before its replacement came is put back."""
        old = self.path.with_name(f".{self.path.name}.old")
        if old.exists() and not self.path.exists():
            old.rename(self.path)
        shutil.rmtree(old, ignore_errors=True)
        for left in self.path.parent.glob(f".{glob.escape(self.path.name)}.*.partial"):
            lock = _try_lock(left)
            if lock is not None:
                lock.close()
                shutil.rmtree(left, ignore_errors=True)

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None
            with contextlib.suppress(OSError):
                (self.folder / _LOCK).unlink()

    def _write_error(self, error: OSError) -> BundleError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return BundleError(f"no space left on the disk of {self.path.parent}: free some and run again")
        return BundleError(f"cannot write the bundle {self.path}: {error.strerror or error}")


def _try_lock(folder: Path) -> Any:
    """The open lock file of a folder, or None while another live process holds it."""
    file = open(folder / _LOCK, "w")  # noqa: SIM115  # held open for the writer's life
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


def _entry(file: Path) -> FileEntry:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return FileEntry(file.stat().st_size, digest.hexdigest())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
