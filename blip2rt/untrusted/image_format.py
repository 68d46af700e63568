"""Recognise image formats by a file's first bytes, and files that take long to decode. image.py decodes."""

import os
import re
from typing import IO

HEAD = 64  # bytes that are inspected
_SIGNATURES = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF87a": "GIF", b"GIF89a": "GIF"}
_SIGNATURES |= dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF")
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_BMP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}  # sizes of the header after a BMP's first 14 bytes
_NAMES = "jpg jpeg jpe jfif png gif bmp dib tif tiff webp avif heic heif hif ppm pgm pbm pnm"
MAX_PARTS = 100_000  # chunks of a PNG, strips or tiles of a TIFF
_MAX_SEGMENTS = 2000  # of a JPEG; Pillow's time to join Exif data grows with their square
_MAX_SCANS = 200  # of a JPEG; a camera's or an editor's has about ten
_SCANNED_PIXELS, _MIN_SCANS = 1_000_000_000, 20  # a large JPEG may have fewer scans: about a second of decoding
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_BARE_MARKERS = (0x01, 0xD8)  # without a length
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PPM_HEADER = re.compile(rb"P[456](\s+(#[^\n]*\n\s*)*\d+){2,3}\s")
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


def slow_to_decode(stream: IO[bytes], kind: str) -> str:
    """Why a file would take long to decode, for its small size: "" for most. Pillow reads some formats by Python."""
    stream.seek(0)
    if kind == "JPEG":
        return _slow_jpeg(stream.read(1 << 28))
    head = stream.read(4096)
    if kind == "PPM" and not _PPM_HEADER.match(head):
        return "is a PPM of text, or its header has long comments: save it as PNG"
    if kind == "BMP" and head[14] >= 40 and head[30:34] in (b"\1\0\0\0", b"\2\0\0\0"):
        return "is a BMP of run lengths: save it as PNG"
    count, position = 0, 8
    while kind == "PNG" and count <= MAX_PARTS:
        stream.seek(position)
        head = stream.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            break
        count, position = count + 1, position + 12 + int.from_bytes(head[:4], "big")
    return too_many(count, "chunks", MAX_PARTS)


def _slow_jpeg(data: bytes) -> str:
    parts = scans = components = position = 0
    limit = _MAX_SCANS
    while parts <= _MAX_SEGMENTS and scans <= limit and (found := _MARKER.search(data, position)):
        marker, start = data[found.start() + 1], found.end()
        segment = data[start : start + 8]
        if marker == 0xD9:  # the end
            break
        if marker in _FRAMES and len(segment) == 8:
            height, width = (int.from_bytes(segment[i : i + 2], "big") for i in (3, 5))
            limit = max(_MIN_SCANS, min(_MAX_SCANS, _SCANNED_PIXELS // max(1, width * height)))
            components = segment[7] if marker in (0xC0, 0xC1) else 0
        if marker == 0xDA and components and segment[2:3] == bytes([components]):  # sequential, all in this scan
            break
        parts, scans = parts + 1, scans + (marker == 0xDA)
        position = start + (0 if marker in _BARE_MARKERS else int.from_bytes(segment[:2], "big"))
    return too_many(parts, "segments", _MAX_SEGMENTS) or too_many(scans, "scans", limit)


def too_many(count: int, what: str, limit: int) -> str:
    """The fault of a file with more parts than a limit; "" for others."""
    return f"has more than {limit:,} {what}: save it again with another program" if count > limit else ""


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
