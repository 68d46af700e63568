"""Plans on disk, so that each is built once: beside a plan lies a note of what it was built from.

A plan is found under a key of everything that it depends on, and loaded only if its note says the same and its hash is
right. Anything else counts as missing. Knows files, nothing about TensorRT.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...bundle.whole import write_file
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
            note = json.loads(_note(plan).read_text(encoding="utf-8"))
            known = isinstance(note, dict) and _canonical(note.get("origin")) == _canonical(origin)
            return plan if known and note.get("sha256") == _hash_file(plan) else None
        except (OSError, ValueError):
            return None

    def store(self, component: str, origin: Mapping[str, Any], data: bytes | memoryview) -> Path:
        """Write a plan, then its note. A killed build leaves nothing that is loaded.

        Raises BackendError where the folder cannot be written.
        """
        plan = self.path(component, origin)
        note = {"origin": origin, "sha256": hashlib.sha256(data).hexdigest()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_file(plan, data)
            write_file(_note(plan), json.dumps(note, indent=2).encode())
        except OSError as error:
            raise BackendError(
                f"cannot write {plan}: {error.strerror or error}; --cache or BLIP2RT_CACHE names another folder"
            ) from error
        return plan


def _note(plan: Path) -> Path:
    return plan.with_suffix(".json")


def _canonical(origin: Any) -> bytes:
    return json.dumps(origin, sort_keys=True).encode()


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
