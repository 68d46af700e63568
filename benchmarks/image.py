"""Time from a JPEG to pixels, and of our resizing next to Pillow's: `python -m benchmarks.image`.

The photographs are synthetic: smooth colours with a camera's noise. Prints the median and the minimum.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.timing import alternate, seconds, show, typical
from blip2rt.bench.cli import picture
from blip2rt.bundle.manifest import ImageSpec
from blip2rt.command_line import Parser, run, whole
from blip2rt.image import normalize, prepare, resize, to_pixels

SPEC = ImageSpec(224, 224, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
TARGET = (SPEC.height, SPEC.width)


def main() -> int:
    return run("python -m benchmarks.image", lambda: _run(_parser().parse_args()))


def _parser() -> Parser:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--widths", type=whole(8), nargs="+", default=[2000, 4000], metavar="N", help="pixels, 4:3")
    parser.add_argument("--runs", type=whole(1), default=40, metavar="N", help="runs of each")
    return parser


def _run(args: argparse.Namespace) -> None:
    for width in args.widths:
        height = width * 3 // 4
        with tempfile.TemporaryDirectory() as folder:
            data = picture(Path(folder) / "photograph.jpg", width, height).read_bytes()
        decoded = decode(data)
        batch = np.random.default_rng(0).integers(0, 256, (8, *TARGET, 3), dtype=np.uint8)
        calls: dict[str, Callable[[], object]] = {
            "decode": partial(decode, data),
            "resize": partial(resize, decoded, TARGET, "bicubic"),
            "resize by Pillow": partial(decoded.resize, TARGET, Image.Resampling.BICUBIC),
            "array to RGB of the model's size": partial(prepare, np.asarray(decoded), SPEC),
            "file to pixels": partial(to_pixels, [data], SPEC),
            "file to pixels, scaled_jpeg": partial(to_pixels, [data], SPEC, scaled=True),
            "normalize a batch of 8": partial(normalize, batch, SPEC),
        }
        for name, values in alternate(
            {name: partial(seconds, call) for name, call in calls.items()}, args.runs
        ).items():
            show(f"{width} x {height}, {name}", f"{typical([1000 * value for value in values], 1)} ms")


def decode(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


if __name__ == "__main__":
    sys.exit(main())
