"""Folders of images as users have them (good and broken files, odd names, links), and `blip2rt` in a process."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

GOOD = ("a.png", "b.jpg", "c.webp", "d.gif", "e.bmp", "f.tiff", "naïve 图.png", "no ending", "wrong.txt.jpg")


def picture(rng: np.random.Generator, height: int = 20, width: int = 30) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def fill(folder: Path, seed: int, count: int = 0) -> list[str]:
    """Fill a folder and a subfolder with GOOD, `count` more images and two broken ones. Return the good names."""
    rng = np.random.default_rng(seed)
    (folder / "sub").mkdir(parents=True)
    names = sorted([*GOOD, *(f"n{i:03d}.png" for i in range(count))], key=os.fsencode)
    for name in names:
        kind = {".jpg": "JPEG", ".webp": "WEBP", ".gif": "GIF", ".bmp": "BMP", ".tiff": "TIFF"}
        picture(rng).save(folder / name, kind.get(Path(name).suffix, "PNG"))
    picture(rng).save(folder / "sub" / "inner.png")
    (folder / "bad.jpg").write_bytes(b"no picture")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:100])
    (folder / "notes.md").write_text("words")
    (folder / ".hidden.png").write_bytes((folder / "a.png").read_bytes())
    return names


def shard(path: Path, seed: int, count: int) -> None:
    """Write a tar shard of `count` samples with captions; one image is damaged, one sample has no image."""
    rng = np.random.default_rng(seed)
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            data = io.BytesIO()
            picture(rng).save(data, "PNG")
            bad = i == 2
            for ending, content in (("png", data.getvalue()[: 60 if bad else None]), ("json", b"{}"), ("txt", b"old")):
                if i != 3 or ending != "png":
                    info = tarfile.TarInfo(f"{i:04d}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def tree(folder: Path) -> dict[str, bytes]:
    """Read every file of a folder, including hidden ones."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start `blip2rt` in a process."""
    command = [sys.executable, "-m", "blip2rt", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
