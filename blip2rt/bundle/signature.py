"""Verify a manifest's signature by minisign (Ed25519): who made a bundle.

The manifest has the sha256 of every file, so its signature and the hashes together authenticate the bundle.

    minisign -G -p maker.pub -s maker.key     # once, by the maker of bundles
    minisign -S -s maker.key -m bundle/blip2rt.json     # writes bundle/blip2rt.json.minisig
    blip2rt verify bundle --key maker.pub
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from pathlib import Path

from ..errors import BundleError, OptionError
from .names import MANIFEST
from .reader import MAX_MANIFEST_BYTES, Bundle
from .regular_files import read_bounded

SUFFIX = ".minisig"
_MAX_BYTES = 1 << 16  # of a signature or a key
_ID, _KEY, _SIGNATURE = slice(2, 10), slice(10, 42), slice(10, 74)


def verify_signature(file: Path, key: Path) -> str:
    """Check FILE.minisig of `file` against a public key; return the signed comment.

    Raises OptionError for an invalid key, BundleError for a signature that is missing, damaged or by another key.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    public = _public_key(key)
    signature_file = file.with_name(file.name + SUFFIX)
    try:
        lines = read_bounded(signature_file, _MAX_BYTES).decode().splitlines()
        content = read_bounded(file, MAX_MANIFEST_BYTES)
    except FileNotFoundError:
        raise BundleError(f"{file} is not signed: there is no {signature_file.name} next to it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"cannot read {signature_file}: {getattr(error, 'strerror', None) or error}") from None
    mark = "trusted comment: "
    if len(lines) < 4 or not lines[2].startswith(mark):
        raise BundleError(f"{signature_file} is not a signature of minisign: copy it again")
    signature, global_signature = _decoded(lines[1], 74, signature_file), _decoded(lines[3], 64, signature_file)
    if signature[_ID] != public[_ID]:
        raise BundleError(f"{file} is signed with key {_name(signature)}, and {key} is {_name(public)}: do not use it")
    comment = lines[2][len(mark) :]
    signed = content if signature[:2] == b"Ed" else hashlib.blake2b(content).digest()  # "ED": of the file's hash
    verifier = Ed25519PublicKey.from_public_bytes(public[_KEY])
    try:
        verifier.verify(signature[_SIGNATURE], signed)
        verifier.verify(global_signature, signature[_SIGNATURE] + comment.encode())
    except InvalidSignature:
        raise BundleError(f"{file} does not match the signature of key {_name(public)}: do not use it") from None
    return comment


def require_covered(bundle: Bundle) -> None:
    """Raise BundleError for links, and for files that the signed manifest does not list."""
    listed, faults = {*(bundle.manifest.files or ()), MANIFEST, MANIFEST + SUFFIX}, []
    for path in sorted(bundle.path.rglob("*")):
        name = path.relative_to(bundle.path).as_posix()
        if path.is_symlink():
            faults.append(f"{name} is a link")
        elif name not in listed and not path.is_dir():
            faults.append(f"{name} is not in the manifest")
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise BundleError(
            f"the signature of {bundle.path} does not cover all of it: {', '.join(faults[:5])}{more}: copy the bundle "
            "without links, and remove other files"
        )


def _public_key(key: Path) -> bytes:
    try:
        lines = read_bounded(key, _MAX_BYTES).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"--key {key}: {getattr(error, 'strerror', None) or error}") from None
    encoded = next((line for line in lines if line and not line.startswith("untrusted comment:")), "")
    try:
        public = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        public = b""
    if len(public) != 42 or public[:2] != b"Ed":
        raise OptionError(f"--key {key} is not a public key of minisign: give the file that minisign -G -p wrote")
    return public


def _decoded(line: str, size: int, file: Path) -> bytes:
    try:
        decoded = base64.b64decode(line, validate=True)
    except binascii.Error:
        decoded = b""
    if len(decoded) != size or (size == 74 and decoded[:2] not in (b"Ed", b"ED")):
        raise BundleError(f"{file} is not a signature of minisign: copy it again")
    return decoded


def _name(key: bytes) -> str:
    """A key's id as minisign prints it."""
    return key[_ID][::-1].hex().upper()
