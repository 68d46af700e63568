"""What a request names as its image -> the bytes of the file. Knows data URIs, base64, and who may be fetched from."""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .faults import Fault, bad
from .fetch import fetch
from .settings import Limits, Media

_ADDRESS = 8192  # characters of a web address, or a file's
_SENT = "send the picture as a data URI (data:image/jpeg;base64,...)"


async def image_bytes(reference: str | bytes, media: Media, limits: Limits, param: str = "image") -> bytes:
    """A data URI, base64, or an address that the server's user has allowed -> the bytes. Raises Fault."""
    if isinstance(reference, bytes):
        return reference
    head = reference[:10].lower()
    if head.startswith("data:"):
        kind, _, data = reference.partition(",")
        if not kind[-20:].lower().rstrip().endswith(";base64"):
            raise bad(f"the data URI is not of base64: {_SENT}", param, "invalid_image")
        return _decode(data, param)
    if head.startswith(("http:", "https:", "file:")) and len(reference) > _ADDRESS:
        raise bad(f"the address has more than {_ADDRESS:,} characters: {_SENT}", param, "invalid_image")
    if head.startswith(("http://", "https://")):
        if not media.domains:
            raise bad(f"web addresses are not fetched: {_SENT}, or start the server with --allow-media-domains",
                      param, "media_not_allowed")  # fmt: skip
        return await asyncio.to_thread(fetch, reference, media, limits.body, param)
    if head.startswith("file:"):
        if not media.folders:
            raise bad(f"files are not read: {_SENT}, or start the server with --allow-media-path", param,
                      "media_not_allowed")  # fmt: skip
        return await asyncio.to_thread(_from_file, reference, media, limits.body, param)
    return _decode(reference, param)


def _decode(data: str, param: str) -> bytes:
    """Base64 of either alphabet, with or without its padding and line ends."""
    try:
        text = data.encode("ascii").translate(bytes.maketrans(b"-_", b"+/"), b" \t\r\n").rstrip(b"=")
        found = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise bad(f"the image is neither base64 nor an address: {_SENT}", param, "invalid_image") from None
    if not found:
        raise bad(f"the image is empty: {_SENT}", param, "invalid_image")
    return found


def _from_file(uri: str, media: Media, most: int, param: str) -> bytes:
    """A file under an allowed folder, links followed first. What is not there and what is not allowed read alike."""
    parts = urlsplit(uri)
    path = Path(os.path.realpath(unquote(parts.path).replace("\0", "")))
    refused = bad("no such file under a folder of --allow-media-path", param, "media_not_allowed")
    if parts.netloc not in ("", "localhost") or not any(
        path.is_relative_to(os.path.realpath(folder)) for folder in media.folders
    ):
        raise refused
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        raise refused from None
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise refused
        if status.st_size > most:
            raise Fault(413, f"the file has more than {most:,} bytes: name a smaller one", "body_too_large", param)
        with open(file, "rb", closefd=False) as stream:
            return stream.read(most)
    finally:
        os.close(file)
