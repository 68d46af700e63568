"""Checksums of files, and the manifest's own: sha256 of its bytes, with zeros for the hash itself.

Detects damage, not authorship.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

KEY, EMPTY = "manifest_sha256", "0" * 64
_PATTERN = re.compile(rb'"manifest_sha256": "([0-9a-f]{64})"')


def insert_checksum(manifest: bytes) -> bytes:
    """Replace EMPTY in a manifest by its checksum."""
    return _PATTERN.sub(f'"{KEY}": "{_hash(manifest)}"'.encode(), manifest)


def is_intact(manifest: bytes) -> bool | None:
    """Whether a manifest matches its checksum; None if it has none, as from older versions."""
    found = _PATTERN.findall(manifest)
    if not found:
        return None
    return len(found) == 1 and found[0].decode() == _hash(manifest)


def sha256_of(file: str | os.PathLike[str], progress: Callable[[int], object] = lambda size: None) -> bytes:
    """The sha256 of a file. progress: called with the size of each piece. Raises OSError."""
    import hashlib

    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
            progress(len(piece))
    return digest.digest()


def _hash(manifest: bytes) -> str:
    import hashlib  # not needed to load a bundle

    return hashlib.sha256(_PATTERN.sub(f'"{KEY}": "{EMPTY}"'.encode(), manifest)).hexdigest()
