"""The manifest's own hash: sha256 of its bytes, with zeros in the hash's place. It tells damage, not who wrote it."""

from __future__ import annotations

import re

KEY, EMPTY = "manifest_sha256", "0" * 64
_FOUND = re.compile(rb'"manifest_sha256": "([0-9a-f]{64})"')


def seal(manifest: bytes) -> bytes:
    """Put the hash into a manifest that holds EMPTY for KEY."""
    return _FOUND.sub(f'"{KEY}": "{_hash(manifest)}"'.encode(), manifest)


def is_whole(manifest: bytes) -> bool | None:
    """Whether a manifest is as it was written; None where it has no hash of its own, as of an older blip2rt."""
    found = _FOUND.findall(manifest)
    if not found:
        return None
    return len(found) == 1 and found[0].decode() == _hash(manifest)


def _hash(manifest: bytes) -> str:
    import hashlib  # only here: loading a bundle does not hash

    return hashlib.sha256(_FOUND.sub(f'"{KEY}": "{EMPTY}"'.encode(), manifest)).hexdigest()
