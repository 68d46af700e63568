"""docs/jetson.md agrees with the container images."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def column(name: str) -> dict[str, str]:
    """A column of the page's table of JetPacks: row -> cell."""
    lines = [line for line in (ROOT / "docs" / "jetson.md").read_text().splitlines() if line.startswith("|")]
    head = next(i for i, line in enumerate(lines) if name in line)
    at = [cell.strip() for cell in lines[head].split("|")].index(name)
    rows = [[cell.strip() for cell in line.split("|")] for line in lines[head + 2 :]]
    return {row[1]: row[at] for row in rows[:8]}


def test_every_jetpack_has_an_image() -> None:
    """With the CUDA, TensorRT and extra of the page; every copied path exists."""
    for name in ("JetPack 6.2", "JetPack 7.2"):
        page = column(name)
        file = ROOT / page["container"].strip("`")
        text = file.read_text()
        assert f"CUDA {page['CUDA']}" in text and f"TensorRT {page['TensorRT']}" in text
        extra = page["blip2rt's extra"].strip("`")
        assert f"/src[{extra}]" in text
        assert "--system-site-packages" in text and "--runtime nvidia" in text
        [base] = re.findall(r"^ARG BASE=(.*)$", text, re.MULTILINE)
        assert page["TensorRT"] in base or (page["CUDA"] in base and f"TENSORRT={page['TensorRT']}.*" in text)
        for source in re.findall(r"^COPY (\S+) ", text, re.MULTILINE):
            assert (ROOT / source).exists()
