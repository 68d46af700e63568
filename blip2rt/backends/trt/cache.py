"""A cache of plans on disk, so that each plan is built once.

A plan's file name contains a hash of everything that the plan depends on. Metadata in a JSON file beside the plan
repeat these inputs and hold the plan's SHA-256; a plan whose metadata or hash do not match counts as missing. The hash
is recomputed only if the file's size or times or the stored hash have changed, because plans can have gigabytes.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...bundle.atomic import write_file
from ...bundle.checksum import sha256_of
from ...errors import BackendError
from ...system import user_cache


def default_folder() -> Path:
    """$BLIP2RT_CACHE, or a folder in the user's cache."""
    if given := os.environ.get("BLIP2RT_CACHE"):
        return Path(given)
    return user_cache() / "engines"


class PlanCache:
    """The plans in a folder, each identified by its `origin`: what it was built from and for, as JSON."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, component: str, origin: Mapping[str, Any]) -> Path:
        key = hashlib.sha256(_canonical(origin)).hexdigest()[:20]
        return self.folder / f"{component}-{key}.plan"

    def find(self, component: str, origin: Mapping[str, Any]) -> Path | None:
        """The intact plan built from `origin`, or None if it has to be built."""
        plan = self.path(component, origin)
        try:
            metadata = self.metadata(plan)
            if _canonical(metadata.get("origin")) != _canonical(origin):
                return None
            stamp = [*_stamp(plan), metadata.get("sha256")]
            if metadata.get("stamp") == stamp:
                return plan
            if metadata.get("sha256") != sha256_of(plan).hex():
                return None
        except OSError:
            return None
        with contextlib.suppress(BackendError):  # in a read-only folder the plan is hashed at every load
            self.update_metadata(plan, stamp=stamp)
        return plan

    def metadata(self, plan: Path) -> dict[str, Any]:
        """A plan's metadata; empty if they are missing or unreadable."""
        try:
            metadata = json.loads(_metadata_path(plan).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return metadata if isinstance(metadata, dict) else {}

    def update_metadata(self, plan: Path, **fields: Any) -> None:
        """Set fields of a plan's metadata. Raises BackendError if the folder is not writable."""
        self._write(_metadata_path(plan), json.dumps({**self.metadata(plan), **fields}, indent=2).encode())

    def store(self, component: str, origin: Mapping[str, Any], data: bytes | memoryview) -> Path:
        """Write a plan, then its metadata, so that an interrupted write is never loaded.

        Raises BackendError if the folder is not writable.
        """
        plan = self.path(component, origin)
        digest = hashlib.sha256(data).hexdigest()
        self._write(plan, data)
        metadata = {"origin": origin, "sha256": digest, "stamp": [*_stamp(plan), digest]}
        self._write(_metadata_path(plan), json.dumps(metadata, indent=2).encode())
        return plan

    def _write(self, path: Path, data: bytes | memoryview) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_file(path, data)
        except OSError as error:
            raise BackendError(
                f"cannot write {path}: {error.strerror or error}: choose another folder with --cache or BLIP2RT_CACHE"
            ) from error


def _metadata_path(plan: Path) -> Path:
    return plan.with_suffix(".json")


def _canonical(origin: Any) -> bytes:
    return json.dumps(origin, sort_keys=True).encode()


def _stamp(path: Path) -> list[int]:
    """Size and times of a file. The second time changes even if a program restores the first."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]
