"""Odd image files: every mode, bit depth and orientation, extreme shapes, and damage."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image, ImageFile

Rng = np.random.Generator
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by PNG's colour type
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def random_size(rng: Rng) -> tuple[int, int]:
    """Mostly small; some a pixel wide or high, or far from square."""
    return tuple(int(2 ** rng.uniform(0, 8.5)) for _ in range(2))  # type: ignore[return-value]


def picture(rng: Rng, mode: str) -> Image.Image:
    """Noise over a gradient, so that filters and colour conversions have something to do."""
    width, height = random_size(rng)
    y, x = np.mgrid[:height, :width]
    bands = [(x * rng.uniform(-3, 3) + y * rng.uniform(-3, 3) + rng.integers(0, 256)) % 256 for _ in range(4)]
    values = (np.stack(bands, -1) + rng.normal(0, rng.uniform(0, 40), (height, width, 4))).clip(0, 255).astype(np.uint8)
    if mode == "L":
        return Image.fromarray(values[..., 0])
    if mode == "CMYK":
        return Image.fromarray(values, "CMYK")
    return Image.fromarray(values[..., : len(mode)])


def exif_of(rng: Rng) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(0, 10))
    exif[0x010F] = "a camera"
    return exif.tobytes()


def xmp_of(rng: Rng) -> bytes:
    form = rng.choice(['<x tiff:Orientation="{}"/>', "<tiff:Orientation>{}</tiff:Orientation>"])
    return str(form).format(rng.integers(0, 10)).encode()


def jpeg(rng: Rng) -> bytes:
    mode = str(rng.choice(["L", "RGB", "RGB", "RGB", "CMYK"]))
    options: dict[str, Any] = {"quality": int(rng.integers(1, 101)), "progressive": bool(rng.integers(2))}
    if mode == "RGB":
        options["subsampling"] = int(rng.integers(3))
    if rng.integers(4) == 0:
        options["restart_marker_blocks"] = int(rng.integers(1, 9))
    if rng.integers(2):
        options["exif"] = exif_of(rng)
    elif rng.integers(4) == 0:
        options["xmp"] = xmp_of(rng)
    return saved(picture(rng, mode), "JPEG", **options)


def webp(rng: Rng) -> bytes:
    options: dict[str, Any] = {"lossless": bool(rng.integers(2)), "quality": int(rng.integers(101)), "method": 0}
    if rng.integers(2):
        options["exif"] = exif_of(rng)
    if rng.integers(4) == 0:
        options["xmp"] = xmp_of(rng)
    first = picture(rng, str(rng.choice(["RGB", "RGBA"])))
    if rng.integers(4) == 0:
        options |= {"save_all": True, "append_images": [first.transpose(Image.Transpose.ROTATE_180)]}
    return saved(first, "WEBP", **options)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    with patch.object(ImageFile, "MAXBLOCK", 1 << 20):  # Pillow's own guess is too small for noise
        image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def packed(samples: np.ndarray, depth: int) -> bytes:
    """Rows of samples (height, width * channels) -> PNG's bytes, each row after a filter byte of 0."""
    if depth == 16:
        rows = samples.astype(">u2").view(np.uint8).reshape(len(samples), -1)
    else:
        bits = np.unpackbits(samples.astype(np.uint8)[..., None], axis=2)[..., 8 - depth :]
        rows = np.packbits(bits.reshape(len(samples), -1), axis=1)
    return b"".join(b"\0" + row.tobytes() for row in rows)


def png(rng: Rng) -> bytes:
    """A PNG of any colour type and depth, interlaced or not, with transparency in all its forms."""
    kind = int(rng.choice(list(DEPTHS)))
    depth = int(rng.choice(DEPTHS[kind]))
    width, height = random_size(rng)
    channels, colours = CHANNELS[kind], 1 << depth
    palette = int(rng.integers(1, min(colours, 256) + 1))
    samples = rng.integers(0, palette if kind == 3 else colours, (height, width, channels))
    samples = np.repeat(samples[:, :1], width, 1) if rng.integers(3) == 0 else samples
    interlaced = bool(rng.integers(2))
    parts = [samples]
    if interlaced:
        parts = [samples[y::down, x::right] for x, y, right, down in ADAM7]
    data = b"".join(packed(part.reshape(len(part), -1), depth) for part in parts if part.size)
    body = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced))
    if rng.integers(4) == 0:
        body += chunk(b"gAMA", struct.pack(">I", 45455)) + chunk(b"sRGB", b"\0")
    if kind == 3:
        body += chunk(b"PLTE", rng.integers(0, 256, 3 * palette).astype(np.uint8).tobytes())
    body += transparency(rng, kind, samples, palette)
    if rng.integers(3) == 0:
        body += chunk(b"eXIf", exif_of(rng)[6:])
    elif rng.integers(4) == 0:
        body += chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp_of(rng))
    elif rng.integers(4) == 0:
        digits = exif_of(rng).hex()
        body += chunk(b"tEXt", b"Raw profile type exif\0\nexif\n%8d\n" % (len(digits) // 2) + digits.encode() + b"\n")
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IDAT", zlib.compress(data, 1)) + chunk(b"IEND", b"")


def transparency(rng: Rng, kind: int, samples: np.ndarray, palette: int) -> bytes:
    """A tRNS chunk, or nothing."""
    if kind in (4, 6) or rng.integers(2):
        return b""
    if kind == 3:
        alphas = rng.choice([0, 255, 255, 128], int(rng.integers(1, palette + 1)))
        return chunk(b"tRNS", alphas.astype(np.uint8).tobytes())
    height, width, _ = samples.shape
    key = samples[rng.integers(height), rng.integers(width)]
    return chunk(b"tRNS", key.astype(">u2").tobytes())


def damaged(rng: Rng) -> bytes:
    """A file that is cut, or has a few bytes changed."""
    make: Callable[[Rng], bytes] = (jpeg, png, webp)[rng.integers(3)]
    data = bytearray(make(rng))
    if rng.integers(2):
        return bytes(data[: rng.integers(1, len(data))])
    for _ in range(rng.integers(1, 4)):
        data[rng.integers(len(data))] = rng.integers(256)
    return bytes(data)
