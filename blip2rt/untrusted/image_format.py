"""What kind of image a file is, by its first bytes. Knows no more than those; decoding is image.py's."""

from __future__ import annotations

import os

HEAD = 64  # bytes that are looked at
_STARTS = {
    b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF87a": "GIF", b"GIF89a": "GIF", b"II*\0": "TIFF",
    b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF",
}  # fmt: skip
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_BMP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}  # bytes of what follows a BMP's first 14
EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".avif", ".heic",
    ".heif", ".hif", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip


def kind_of(head: bytes) -> str:
    """The first bytes of a file -> JPEG, PNG, GIF, BMP, TIFF, WEBP, AVIF, HEIF, PPM, or "" for all else."""
    for start, kind in _STARTS.items():
        if head.startswith(start):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if head[4:8] == b"ftyp":
        end = min(int.from_bytes(head[:4], "big"), len(head))
        brands = {head[8:12], *(head[i : i + 4] for i in range(16, end, 4))}
        return "AVIF" if brands & {b"avif", b"avis"} else "HEIF" if brands & _HEIC else ""
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3] in (b" ", b"\t", b"\n", b"\r"):
        return "PPM"
    return ""


def looks_named(name: str) -> bool:
    """Whether a file's name promises an image."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def head_of(path: str) -> bytes:
    """The first bytes of a file. Raises OSError. A pipe without a writer is not waited for."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        return os.read(descriptor, HEAD)
    finally:
        os.close(descriptor)
