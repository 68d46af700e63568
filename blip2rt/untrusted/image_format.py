"""Recognise image formats by a file's first bytes. Decoding is done in image.py."""

from __future__ import annotations

import os
from typing import IO

HEAD = 64  # bytes that are inspected
_SIGNATURES = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF87a": "GIF", b"GIF89a": "GIF"}
_SIGNATURES |= dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF")
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_BMP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}  # sizes of the header after a BMP's first 14 bytes
_NAMES = "jpg jpeg jpe jfif png gif bmp dib tif tiff webp avif heic heif hif ppm pgm pbm pnm"
EXTENSIONS = tuple(f".{name}" for name in _NAMES.split())


def format_of(head: bytes) -> str:
    """The first bytes of a file -> JPEG, PNG, GIF, BMP, TIFF, WEBP, AVIF, HEIF, PPM, or "" for anything else."""
    for signature, name in _SIGNATURES.items():
        if head.startswith(signature):
            return name
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


def decodes_by_line(stream: IO[bytes]) -> bool:
    """Whether a file is a JPEG that a decoder need not hold as a whole: sequential, with all components in one scan."""
    stream.seek(0)
    if stream.read(2) != b"\xff\xd8":
        return False
    components = -1
    while len(head := stream.read(4)) == 4 and head[0] == 0xFF:
        marker, size = head[1], int.from_bytes(head[2:], "big") - 2
        segment = stream.read(max(size, 0))
        if marker in (0xC0, 0xC1) and len(segment) > 5:  # start of a sequential frame
            components = segment[5]
        elif marker == 0xDA:  # start of the first scan
            return segment[:1] == bytes([max(components, 0)]) and components > 0
    return False


def has_image_name(name: str) -> bool:
    """Whether a file has an image's extension."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def read_head(path: str) -> bytes:
    """The first bytes of a file. Raises OSError. Does not wait for the writer of a pipe."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        return os.read(descriptor, HEAD)
    finally:
        os.close(descriptor)
