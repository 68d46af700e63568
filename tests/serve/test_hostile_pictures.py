"""Small files that are slow to decode, from many callers at once: the others are still answered."""

from __future__ import annotations

import io
import itertools
import struct
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image

from tests.serve.server_process import ServerProcess, png

pytestmark = pytest.mark.slow
HOSTILE, CALLERS = 200, 8


def saved(kind: str, side: int = 8, mode: str = "RGB", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (side, side)).save(stream, kind, **options)
    return stream.getvalue()


def repeated(file: bytes, at: int, part: bytes, count: int) -> bytes:
    return file[:at] + part * count + file[at:]


def jpeg_of_scans() -> bytes:
    file = saved("JPEG", 1000, progressive=True)
    return repeated(file, -2, file[file.rindex(b"\xff\xda") : -2], 4000)


def png_of_chunks() -> bytes:
    data = b"tEXtkey\0" + bytes(20)
    return repeated(
        saved("PNG"), 33, struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data)), 90_000
    )


def png_of_size() -> bytes:
    """A bomb: 49 million pixels in 48 kB."""
    data = zlib.compress(bytes(7001 * 7000))
    header, end = saved("PNG")[:8], b"\0\0\0\0IEND\xaeB`\x82"
    for name, content in ((b"IHDR", struct.pack(">IIBBBBB", 7000, 7000, 8, 0, 0, 0, 0)), (b"IDAT", data)):
        header += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return header + end


def hostile_pictures() -> list[bytes]:
    exif, frames = b"\xff\xe1\0\x96Exif\0\0" + bytes(142), [Image.new("P", (300, 300), i) for i in range(250)]
    gif = saved("GIF", mode="P")
    return [
        jpeg_of_scans(),
        repeated(saved("JPEG"), 2, exif, 60_000),
        repeated(gif, 13 + 3 * (2 << (gif[10] & 7)), b"\x21\xfe\1x\0", 500_000),
        saved("GIF", 300, "P", save_all=True, append_images=frames * 4),
        saved("WEBP", 300, save_all=True, append_images=[frame.convert("RGB") for frame in frames]),
        png_of_chunks(),
        png_of_size(),
        saved("TIFF", 3000, "L", compression="tiff_deflate", tiffinfo={278: 1}),
        b"P3 9 9 9 " + b"#\n" * 3_000_000,
        png_of_size()[:-2000],
    ]


def test_hostile_pictures_delay_ordinary_callers_little(start: Callable[..., ServerProcess], photo: Any) -> None:
    server = start("--deadline", 60)
    pictures, ordinary = hostile_pictures(), png(photo())
    assert max(map(len, pictures)) < 20 << 20

    def send(picture: bytes) -> int:
        return server.post("/v1/caption", picture, Content_Type="image/unknown").status

    def call(_: int) -> tuple[int, int, float]:
        begun = time.monotonic()
        return server.get("/ready").status, send(ordinary), time.monotonic() - begun

    with ThreadPoolExecutor(16) as attackers, ThreadPoolExecutor(CALLERS) as callers:
        attacks = attackers.map(send, itertools.islice(itertools.cycle(pictures), HOSTILE))
        answers = list(callers.map(call, range(CALLERS * 5)))
        statuses = list(attacks)
    assert {status for *both, _ in answers for status in both} == {200}
    assert max(seconds for *_, seconds in answers) < 40, answers
    assert set(statuses) <= {200, 400}, "none holds a slot until its deadline"
    assert server.get("/ready").status == 200 and server.metric("blip2rt_running") == 0
