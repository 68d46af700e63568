"""Overhead of `blip2rt caption` on a folder, or with --index the cost of an index: `python -m benchmarks.gallery`.

Photographs are made from those in --source, enlarged to --megapixels with a camera's noise. Candidates run in turns:
the whole command; encoder and loop alone, on pixels in memory, with all threads or with the command's workers;
`caption` on each file; decoding alone on one core. The peak memory is that of the command on the first 64 photographs.
The index consists of synthetic pictures: mixtures of the vectors of --source's.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

import blip2rt
from benchmarks.timing import alternate, seconds, timed
from blip2rt.command_line import Parser, path, run, whole
from blip2rt.errors import OptionError
from blip2rt.gallery.captions import BATCH_SIZE, OutputSettings, TextSettings, caption
from blip2rt.gallery.outputs.templates import CaptionTemplate
from blip2rt.gallery.prefetch import Parallelism
from blip2rt.gallery.sources import Picture, Sources
from blip2rt.gallery.vectors import Shortlist, Vectors, one_vector
from blip2rt.gallery.walk import walk
from blip2rt.gallery.worker_pool import map_ordered

ROOT = Path(__file__).parents[1]


def originals(source: Path, count: int) -> list[str]:
    """Return the paths of `count` pictures, repeated if there are fewer."""
    found = [each.path for each in walk(Sources((str(source),), recursive=True)) if isinstance(each, Picture)]
    if not found:
        raise OptionError(f"no pictures in --source {source}: give a folder of pictures")
    return [found[i % len(found)] for i in range(count)]


def enlarge(name: str, target: Path, megapixels: float, rng: np.random.Generator) -> None:
    """Write a picture as a 4:3 JPEG of this many megapixels, about as large as a camera's."""
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    with Image.open(name) as image:
        large = image.convert("RGB").resize((height * 4 // 3, height), Image.Resampling.BICUBIC)
    noise = rng.normal(0, 5, (height, height * 4 // 3, 1))
    noisy = np.clip(np.asarray(large, np.float32) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(target, "JPEG", quality=88)


def photographs(args: argparse.Namespace, folder: str) -> list[str]:
    names, rng = originals(args.source, args.photos), np.random.default_rng(0)
    for i, name in enumerate(names if args.megapixels else []):
        names[i] = f"{folder}/{i:06d}.jpg"
        enlarge(name, Path(names[i]), args.megapixels, rng)
    return names


def measure_captions(args: argparse.Namespace) -> None:
    parallelism = Parallelism(args.batch_size, args.workers, args.lanes, max(1, args.threads // args.lanes))
    model = blip2rt.load(args.model, threads=parallelism.threads, scaled_jpeg=args.scaled_jpeg)
    with tempfile.TemporaryDirectory() as folder:
        names = photographs(args, folder)
        size = sum(Path(name).stat().st_size for name in names) / len(names)
        print(f"{len(names)} photographs of {size / 1e6:.2f} MB each; {parallelism}")

        def gallery(paths: Sequence[str] = names) -> None:
            outputs = OutputSettings(out=f"{folder}/out.jsonl", overwrite=True)
            texts = TextSettings(None, None, {}, CaptionTemplate())
            caption(model, Sources(paths), texts, outputs, parallelism)

        gallery(names[:64])
        print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
        whole_model = blip2rt.load(args.model, threads=args.threads, scaled_jpeg=args.scaled_jpeg)
        pixels = [model.prepare(name) for name in names]
        batches = [pixels[start : start + parallelism.batch_size] for start in range(0, len(names), args.batch_size)]
        task = whole_model.task()
        calls: dict[str, Callable[[], object]] = {
            "gallery": gallery,
            "threads": lambda: [whole_model.generate(batch, task) for batch in batches],
            "workers": lambda: [*map_ordered(batches, lambda batch: model.generate(batch, task), args.lanes)],
            "each": lambda: [whole_model.caption(name) for name in names],
            "decoding": lambda: [whole_model.prepare(name) for name in names],
        }
        times = alternate({name: partial(seconds, call) for name, call in calls.items()}, args.repeat)
    for name, values in times.items():
        ratio = median(g / s for s, g in zip(values, times["gallery"], strict=True))
        print(f"{name:30s} {1000 * median(values) / len(names):7.1f} ms a picture; the gallery takes {ratio:5.2f} x")


def synthetic(real: np.ndarray, count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield image_embeds (n, Q, E) of `count` mixtures of real ones, in blocks."""
    for start in range(0, count, 4096):
        n = min(4096, count - start)
        one, other, third, fourth = rng.integers(0, len(real), (4, n))
        share = rng.uniform(0.25, 0.75, (n, 1, 1)).astype(np.float32)
        mixed = share * real[one] + (1 - share) * real[other] + 0.3 * (real[third] - real[fourth])
        yield mixed / np.linalg.norm(mixed, axis=-1, keepdims=True)


def measure_index(args: argparse.Namespace) -> None:
    model = blip2rt.load(args.model, threads=args.threads)
    real, rng, count = model.embed_image(originals(args.source, args.photos)), np.random.default_rng(0), args.index
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vectors = Vectors(folder / "vectors.i8", *real.shape[1:])
        shortlist = Shortlist(folder / "shortlist.usearch", real.shape[2], view=False)
        row, spent = 0, 0.0
        for embeds in synthetic(real, count, rng):
            rows = range(row, row + len(embeds))
            spent += seconds(vectors.write, rows, embeds) + seconds(shortlist.add, rows, one_vector(embeds))
            row += len(embeds)
        spent += seconds(shortlist.save)
        sizes = {file.name: file.stat().st_size / count for file in folder.iterdir()}
        print(f"{count:,} pictures of {real.shape[1]} vectors: built in {spent:.1f} s, bytes a picture: {sizes}")
        shortlist = Shortlist(folder / "shortlist.usearch", real.shape[2], view=True)
        measure_queries(vectors, shortlist, args, rng)


def measure_queries(vectors: Vectors, shortlist: Shortlist, args: argparse.Namespace, rng: np.random.Generator) -> None:
    """Search for vectors near those of random pictures, with a shortlist of 200 and exactly."""

    def best(query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        scores = [(embeds @ query).max(axis=1) for _, embeds in vectors.blocks(rows)]
        return rows[np.argsort(-np.concatenate(scores))[:10]]

    recall, fast, slow = [], [], []
    for i in rng.integers(0, args.index, args.queries):
        picture = vectors.read([int(i)])[0]
        query = picture[rng.integers(len(picture))] + rng.normal(0, 0.03, picture.shape[1]).astype(np.float32)
        near, search = timed(shortlist.nearest, query, 200)
        found, scoring = timed(best, query, np.sort(near))
        exact, exhaustive = timed(best, query, np.arange(args.index))
        fast.append(search + scoring)
        slow.append(exhaustive)
        recall.append(len(set(found.tolist()) & set(exact.tolist())) / 10)
    times = f"query {1000 * median(fast):.1f} ms, exact {1000 * median(slow):.0f} ms"
    print(f"{times}; {100 * np.mean(recall):.1f} % of the exact ten are found")


def _parser() -> Parser:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=path, default=ROOT / "docs", metavar="DIR", help="pictures to start from")
    parser.add_argument("--photos", type=whole(1), default=64, metavar="N", help="photographs")
    megapixels = "size of each photograph; 0 uses the pictures of --source unchanged (default: 3)"
    parser.add_argument("--megapixels", type=float, default=3.0, metavar="X", help=megapixels)
    parser.add_argument("--batch-size", type=whole(1), default=BATCH_SIZE, metavar="N", help="pictures per batch")
    parser.add_argument("--workers", type=whole(1), default=2, metavar="N", help="threads that decode")
    parser.add_argument("--threads", type=whole(1), default=2, metavar="N", help="threads of the graphs, in total")
    parser.add_argument("--lanes", type=whole(1), default=2, metavar="N", help="batches in the graphs at once")
    parser.add_argument("--scaled-jpeg", action="store_true", help="as in `blip2rt caption`")
    parser.add_argument("--repeat", type=whole(1), default=3, metavar="N", help="runs of each candidate")
    parser.add_argument("--model", metavar="BUNDLE", help="a bundle (default: nano)")
    parser.add_argument("--index", type=whole(1), metavar="N", help="measure an index of N synthetic pictures instead")
    parser.add_argument("--queries", type=whole(1), default=50, metavar="N", help="searches in the index")
    return parser


def main() -> int:
    return run("python -m benchmarks.gallery", lambda: _run(_parser().parse_args()))


def _run(args: argparse.Namespace) -> None:
    measure_index(args) if args.index else measure_captions(args)


if __name__ == "__main__":
    raise SystemExit(main())
