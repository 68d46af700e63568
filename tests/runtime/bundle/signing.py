"""Signatures of manifests as minisign makes them."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

RAW = (serialization.Encoding.Raw, serialization.PublicFormat.Raw)


class Maker:
    """A key pair and signatures in minisign's format."""

    def __init__(self, folder: Path, number: bytes = b"12345678") -> None:
        self.private, self.number = Ed25519PrivateKey.generate(), number
        self.key = folder / f"{number.decode()}.pub"
        public = base64.b64encode(b"Ed" + number + self.private.public_key().public_bytes(*RAW)).decode()
        self.key.write_text(f"untrusted comment: minisign public key\n{public}\n")

    def sign(self, file: Path, comment: str = "nano of 2026", hashed: bool = True) -> None:
        content = file.read_bytes()
        signature = self.private.sign(hashlib.blake2b(content).digest() if hashed else content)
        first = base64.b64encode((b"ED" if hashed else b"Ed") + self.number + signature).decode()
        whole = base64.b64encode(self.private.sign(signature + comment.encode())).decode()
        text = f"untrusted comment: x\n{first}\ntrusted comment: {comment}\n{whole}\n"
        file.with_name(file.name + ".minisig").write_text(text)
