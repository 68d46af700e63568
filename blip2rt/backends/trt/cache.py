"""A cache of plans on disk, so that each plan is built once.

A plan's file name contains a hash of everything that the plan depends on. A JSON file beside the plan repeats these
inputs and has the plan's SHA-256; a plan that does not match it counts as missing.
"""

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
        key = hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:20]
        return self.folder / f"{component}-{key}.plan"

    def find(self, component: str, origin: Mapping[str, Any]) -> Path | None:
        """The intact plan built from `origin`, or None if it has to be built."""
        plan = self.path(component, origin)
        try:
            metadata = json.loads(plan.with_suffix(".json").read_text(encoding="utf-8"))
            return plan if metadata == {"origin": origin, "sha256": sha256_of(plan).hex()} else None
        except (OSError, ValueError):
            return None

    def store(self, component: str, origin: Mapping[str, Any], data: bytes | memoryview) -> Path:
        """Write a plan, then its metadata, so that an interrupted write is never loaded.

        Raises BackendError if the folder is not writable.
        """
        plan, digest = self.path(component, origin), hashlib.sha256(data).hexdigest()
        metadata = json.dumps({"origin": origin, "sha256": digest}, indent=2).encode()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_file(plan, data)
            write_file(plan.with_suffix(".json"), metadata)
        except OSError as error:
            raise BackendError(
                f"cannot write {plan}: {error.strerror or error}: choose another folder with --cache or BLIP2RT_CACHE"
            ) from error
        return plan
