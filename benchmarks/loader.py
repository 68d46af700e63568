"""Speed of reading `train_data`: `python -m benchmarks.loader --data 'shards/*.tar'` (default: synthetic shards).

Prints images a second of the loader with its transform for several numbers of workers. A training step with b images
a GPU does not wait for data if it takes longer than b / (images a second). Without workers, also prints the processor
time of an image, which other programs on the machine affect less.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from blip2rt.command_line import Parser, run, whole
from blip2rt.modeling.vision import VisionConfig
from blip2rt_train.data.samples import BadSamples
from blip2rt_train.data.sampling import Mixture
from blip2rt_train.data.streaming import SampleReader, load_batches, open_sources
from blip2rt_train.data.transforms import train_transform
from blip2rt_train.loop.memory import keep_freed_memory


def make_shard(folder: Path, count: int, width: int, height: int) -> None:
    """Write smooth random JPEG pictures, about as large as photographs of that size."""
    rng = np.random.default_rng(0)
    with tarfile.open(folder / "000000.tar", "w") as tar:
        for number in range(count):
            small = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
            file = io.BytesIO()
            small.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
            for ending, content in (("jpg", file.getvalue()), ("txt", b"a picture")):
                info = tarfile.TarInfo(f"{number:06d}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def measure(data: str, cache: Path, size: int, batch: int, workers: int, batches: int) -> tuple[float, float]:
    """Return images a second, and this process's processor seconds per image."""
    sources, weights = open_sources(({"path": data},), cache, BadSamples(1000))
    reader = SampleReader(sources, 0, train_transform(VisionConfig(height=size, width=size)))
    feed = load_batches(reader, Mixture(weights, batch, 0), 0, lambda rows: [rows], workers, BadSamples(1000))
    for _ in range(max(1, workers)):  # start the workers
        next(feed)
    started, busy = time.perf_counter(), time.process_time()
    for _ in range(batches):
        next(feed)
    images = batch * batches
    return images / (time.perf_counter() - started), (time.process_time() - busy) / images


def main() -> int:
    return run("python -m benchmarks.loader", lambda: _run(_parser().parse_args()))


def _parser() -> Parser:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    data = "shards to read (default: 500 random pictures of 640 x 480)"
    parser.add_argument("--data", default="", metavar="SHARDS", help=data)
    parser.add_argument("--size", type=whole(1), default=224, metavar="PIXELS", help="height and width of the pixels")
    parser.add_argument("--batch", type=whole(1), default=32, metavar="N", help="images of a batch")
    parser.add_argument("--batches", type=whole(1), default=24, metavar="N", help="batches to read")
    workers = "numbers of workers to compare"
    parser.add_argument("--workers", type=whole(0), nargs="*", default=[0, 1, 2], metavar="N", help=workers)
    return parser


def _run(args: argparse.Namespace) -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if not args.data:
            make_shard(Path(folder), 500, 640, 480)
        for workers in args.workers:
            speed, busy = measure(args.data or folder, Path(folder), args.size, args.batch, workers, args.batches)
            processor = "" if workers else f", {1e3 * busy:.2f} ms of processor time an image"
            print(f"{workers} workers: {speed:.0f} images/s{processor}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
