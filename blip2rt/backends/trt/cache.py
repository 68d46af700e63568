"""Plans on disk, so that each is built once: beside a plan lies a note of what it was built from.

A plan is found under a key of everything that it depends on, and loaded only if its note says the same and its hash is
right. Anything else counts as missing. A plan of gigabytes is hashed once: as long as its size and time are those that
the note has, its hash is right. Knows files, nothing about TensorRT.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...bundle.atomic import write_file
from ...errors import BackendError


def default_folder() -> Path:
    """$BLIP2RT_CACHE, or a folder in the user's cache."""
    if given := os.environ.get("BLIP2RT_CACHE"):
        return Path(given)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "blip2rt" / "engines"


class PlanCache:
    """The plans in a folder. `origin` says in JSON what a plan was built from and for: each has its own plan."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, component: str, origin: Mapping[str, Any]) -> Path:
        key = hashlib.sha256(_canonical(origin)).hexdigest()[:20]
        return self.folder / f"{component}-{key}.plan"

    def find(self, component: str, origin: Mapping[str, Any]) -> Path | None:
        """The plan built from `origin`, whole and unaltered; None where it has to be built."""
        plan = self.path(component, origin)
        try:
            note = self.note(plan)
            if _canonical(note.get("origin")) != _canonical(origin):
                return None
            stamp = _stamp(plan)
            if note.get("stamp") == stamp:
                return plan
            if note.get("sha256") != _hash_file(plan):
                return None
        except OSError:
            return None
        with contextlib.suppress(BackendError):  # a folder that is only read: it is hashed each time
            self.tell(plan, stamp=stamp)
        return plan

    def note(self, plan: Path) -> dict[str, Any]:
        """What is known of a plan; nothing where there is no note that can be read."""
        try:
            note = json.loads(_note(plan).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}

    def tell(self, plan: Path, **more: Any) -> None:
        """Add to a plan's note. Raises BackendError where the folder cannot be written."""
        self._write(_note(plan), json.dumps({**self.note(plan), **more}, indent=2).encode())

    def store(self, component: str, origin: Mapping[str, Any], data: bytes | memoryview) -> Path:
        """Write a plan, then its note. A killed build leaves nothing that is loaded.

        Raises BackendError where the folder cannot be written.
        """
        plan = self.path(component, origin)
        digest = hashlib.sha256(data).hexdigest()
        self._write(plan, data)
        note = {"origin": origin, "sha256": digest, "stamp": _stamp(plan)}
        self._write(_note(plan), json.dumps(note, indent=2).encode())
        return plan

    def _write(self, path: Path, data: bytes | memoryview) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_file(path, data)
        except OSError as error:
            raise BackendError(
                f"cannot write {path}: {error.strerror or error}; --cache or BLIP2RT_CACHE names another folder"
            ) from error


def _note(plan: Path) -> Path:
    return plan.with_suffix(".json")


def _canonical(origin: Any) -> bytes:
    return json.dumps(origin, sort_keys=True).encode()


def _stamp(path: Path) -> list[int]:
    """Size and time of a file, which every change to it changes."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
