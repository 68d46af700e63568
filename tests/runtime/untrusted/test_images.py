"""Untrusted image files: sizes are checked before memory is allocated, and no other program is started."""

import io
import os
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

import blip2rt
from blip2rt.bundle.manifest import ImageSpec
from blip2rt.errors import ImageError, OptionError
from blip2rt.image import FORMATS, MAX_PIXELS, PILLOW_MAX_PIXELS, load_rgb, prepare

SPEC = ImageSpec(24, 32, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(touched) print\n%%EOF\n"


def png_that_claims(width: int, height: int) -> bytes:
    """A tiny PNG whose header claims width x height RGBA pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_oversized_header_allocates_nothing() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for size, fault in (((13_000, 13_000), "13000 x 13000 pixels, more than 50,000,000"), ((70_000, 1), "65,535 a")):
        with pytest.raises(ImageError, match=f"{fault}.*: scale"):
            load_rgb(png_that_claims(*size))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB; the pixels would be 660,156


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize(("mode", "most"), [("RGB", 5), ("P", 6), ("I;16", 7)])
def test_decoding_memory_is_bounded(tmp_path: Path, mode: str, most: int) -> None:
    """A PNG of 16 million pixels; most: bytes per pixel. Pillow uses four for RGB and alpha."""
    side = 4000
    transparency = {"transparency": 0} if mode == "P" else {}
    Image.new(mode, (side, side)).save(tmp_path / "a.png", compress_level=1, **transparency)
    code = """if True:
        from blip2rt.image import load_rgb
        peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
        load_rgb(b"P5 9 9 255 " + bytes(81))
        before = peak()
        load_rgb("a.png")
        print(peak() - before)"""
    taken = int(subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path))
    assert taken < most * side * side, taken / side**2


def test_callers_pixel_limit_applies() -> None:
    data = io.BytesIO()
    Image.new("L", (100, 100), 7).save(data, "PNG")
    assert (prepare(data.getvalue(), SPEC, max_pixels=10_000) == 7).all()
    with pytest.raises(ImageError, match=r"9,999: .* \(--max-pixels N, load\(max_pixels=N\)\)"):
        prepare(data.getvalue(), SPEC, max_pixels=9_999)
    assert MAX_PIXELS == 50_000_000 and Image.MAX_IMAGE_PIXELS is not None
    assert PILLOW_MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS  # Pillow's limit
    with pytest.raises(OptionError, match="max_pixels is 178956971: give a number of pixels from 1 to 178,956,970"):
        blip2rt.load(max_pixels=PILLOW_MAX_PIXELS + 1)


@pytest.mark.parametrize("min_side", [None, 300])
def test_large_jpegs_are_decoded_at_reduced_size(caplog: pytest.LogCaptureFixture, min_side: int | None) -> None:
    data = io.BytesIO()
    Image.linear_gradient("L").resize((4000, 2000)).convert("RGB").save(data, "JPEG")
    image = load_rgb(data.getvalue(), min_side, max_pixels=2_500_000)
    assert image.size == ((2000, 1000) if min_side is None else (1000, 500))
    assert np.asarray(image)[-1].mean() > 250 and np.asarray(image)[0].mean() < 5
    assert "4000 x 2000 pixels, more than 2,500,000: decoded as" in caplog.text
    with pytest.raises(ImageError, match="more than 100,000: scale it down first"):  # an eighth has 125,000
        load_rgb(data.getvalue(), min_side, max_pixels=100_000)


@pytest.mark.parametrize("kind", ["progressive", "scans", "PNG"])
def test_large_images_that_need_their_whole_size_are_rejected(kind: str) -> None:
    """A decoder holds all coefficients of a JPEG that is progressive or has a scan for each component."""
    data = io.BytesIO()
    Image.new("RGB", (400, 200)).save(data, "PNG" if kind == "PNG" else "JPEG", progressive=kind == "progressive")
    raw = data.getvalue()
    if kind == "scans":
        raw = raw.replace(b"\xff\xda\0\x0c\3", b"\xff\xda\0\x0a\2")
    with pytest.raises(ImageError, match="400 x 200 pixels, more than 30,000: scale it down"):
        load_rgb(raw, max_pixels=30_000)


def jpeg_of_scans(scans: int, side: int) -> bytes:
    """A progressive JPEG that repeats its last scan."""
    data = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(data, "JPEG", progressive=True)
    start = data.getvalue().rindex(b"\xff\xda")
    own = data.getvalue().count(b"\xff\xda")
    return data.getvalue()[:-2] + data.getvalue()[start:-2] * (scans - own) + b"\xff\xd9"


@pytest.mark.parametrize(("side", "limit"), [(64, 200), (3000, 111), (8000, 20)])
def test_scans_are_limited(side: int, limit: int) -> None:
    """Each takes as long as decoding the image; the whole would block a worker for minutes."""
    if side < 100:
        assert load_rgb(jpeg_of_scans(limit, side)).size == (side, side)
    with pytest.raises(ImageError, match=f"has more than {limit} scans: save it again"):
        load_rgb(jpeg_of_scans(limit + 1, side), max_pixels=100_000_000)


@pytest.mark.parametrize(
    ("kind", "at", "part", "limit"),
    [
        ("JPEG", 2, b"\xff\xe1\0\2", 2000),
        ("PNG", 33, b"\0\0\0\0prVt" + zlib.crc32(b"prVt").to_bytes(4, "big"), 100_000),
    ],
)
def test_parts_of_a_file_are_limited(kind: str, at: int, part: bytes, limit: int) -> None:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(data, kind)
    raw = data.getvalue()
    assert load_rgb(raw[:at] + part * 1000 + raw[at:]).size == (8, 8)
    with pytest.raises(ImageError, match=f"has more than {limit:,} (segments|chunks): save it again"):
        load_rgb(raw[:at] + part * (limit + 1) + raw[at:])


def test_strips_of_a_tiff_are_limited() -> None:
    fields = [(256, 9), (257, 9), (258, 8), (259, 1), (262, 1), (277, 1), (278, 1)]  # 9 x 9 pixels
    count, end = 100_001, 8 + 2 + 12 * 9 + 4
    head = b"II*\0" + struct.pack("<IH", 8, 9) + b"".join(struct.pack("<HHII", tag, 4, 1, x) for tag, x in fields[:5])
    head += struct.pack("<HHII", 273, 4, count, end)
    head += b"".join(struct.pack("<HHII", tag, 4, 1, x) for tag, x in fields[5:])
    head += struct.pack("<HHII", 279, 4, count, end + 4 * count) + bytes(4)
    with pytest.raises(ImageError, match="has more than 100,000 strips or tiles: save it again"):
        load_rgb(head + struct.pack("<I", 8) * count + struct.pack("<I", 1) * count)


def test_formats_that_pillow_decodes_by_python_are_rejected() -> None:
    image = io.BytesIO()
    Image.new("RGB", (4, 2), "red").save(image, "PPM")
    pixels = image.getvalue()[-24:]
    assert load_rgb(b"P6 # a comment\n4 # another\n 2\n255\n" + pixels).getpixel((0, 0)) == (255, 0, 0)
    for header in (b"P3 4 2 255 ", b"P6 " + b"#\n" * 3000 + b"4 2 255 "):
        with pytest.raises(ImageError, match="is a PPM of text, or its header has long comments: save it as PNG"):
            load_rgb(header + pixels)
    image = io.BytesIO()
    Image.new("P", (4, 2)).save(image, "BMP")
    raw = image.getvalue()
    assert load_rgb(raw).size == (4, 2)
    with pytest.raises(ImageError, match="is a BMP of run lengths: save it as PNG"):
        load_rgb(raw[:30] + b"\1" + raw[31:])


@pytest.mark.parametrize("kind", ["EPS", "TGA", "PCX", "SGI", "ICO", "IM", "DDS", "ICNS", "SPIDER"])
def test_only_supported_formats_are_opened(kind: str) -> None:
    data = io.BytesIO()
    Image.new("F" if kind == "SPIDER" else "RGB", (32, 32)).save(data, kind)
    with Image.open(io.BytesIO(data.getvalue())) as opened:
        assert opened.format == kind and kind not in FORMATS
    with pytest.raises(ImageError, match="is not an image: give one of JPEG, PNG"):
        load_rgb(data.getvalue())


def test_postscript_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would run gs for an EPS file with any name."""
    called = tmp_path / "called"
    for name in ("gs", "gswin64c"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {called}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "photo.jpg").write_bytes(EPS)
    for image in (EPS, tmp_path / "photo.jpg"):
        with pytest.raises(ImageError, match="is not an image: give one of JPEG, PNG"):
            load_rgb(image)
    assert not called.exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_pipes_and_devices_do_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in (tmp_path / "pipe.jpg", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(ImageError, match="is a pipe or a device"):
            load_rgb(name)


@pytest.mark.parametrize("step", ["_read_header", "to_rgb", "resize"])
def test_memory_errors_become_image_errors(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"blip2rt.image.{step}", Mock(side_effect=MemoryError))
    Image.new("RGB", (8, 8)).save(file := io.BytesIO(), "PNG")
    with pytest.raises(ImageError, match="^not enough memory"):
        prepare(file.getvalue(), SPEC)
