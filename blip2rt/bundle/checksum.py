"""Checksums of files, and the manifest's own: sha256 of its bytes, with zeros for the hash itself.

Detects damage, not authorship.
"""

import os

KEY, EMPTY = "manifest_sha256", "0" * 64


def insert_checksum(manifest: bytes) -> bytes:
    """Replace EMPTY in a manifest by its checksum."""
    import hashlib  # not needed to load a bundle

    digest = hashlib.sha256(manifest).hexdigest()
    return manifest.replace(f'"{KEY}": "{EMPTY}"'.encode(), f'"{KEY}": "{digest}"'.encode())


def sha256_of(file: str | os.PathLike[str]) -> bytes:
    """The sha256 of a file. Raises OSError."""
    import hashlib

    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.digest()
