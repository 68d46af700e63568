"""Overhead of `blip2rt caption` on a folder, or with --index the cost of an index: `python -m benchmarks.gallery`.

Photographs are made from those in --source, enlarged to --megapixels with a camera's noise. Candidates run in turns:
the whole command; encoder and loop alone, on pixels in memory, with all threads or with the command's workers;
`caption` on each file; decoding alone on one core. The peak memory is that of the command on the first 64 photographs.
The index consists of synthetic pictures: each mixes vectors of two of --source's, adds a difference of two more and a
little noise. Queries are captions (--queries, one a line); the exact ten best are those of all stored vectors.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

import blip2rt
from benchmarks.timing import alternate, seconds
from blip2rt.command_line import Parser, path, run, whole
from blip2rt.errors import OptionError
from blip2rt.gallery import Index
from blip2rt.gallery.captions import BATCH_SIZE, OutputSettings, TextSettings, caption
from blip2rt.gallery.catalog import File
from blip2rt.gallery.outputs.templates import CaptionTemplate
from blip2rt.gallery.prefetch import Parallelism
from blip2rt.gallery.sources import Picture, Sources
from blip2rt.gallery.walk import walk
from blip2rt.gallery.worker_pool import map_ordered

BLOCK = 4096  # pictures
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
    """Yield image_embeds (n, Q, E) of `count` pictures, in blocks."""
    for start in range(0, count, BLOCK):
        n = min(BLOCK, count - start)
        one, other, third, fourth = rng.integers(0, len(real), (4, n))
        share = rng.uniform(0.5, 1, (n, 1, 1)).astype(np.float32)
        mixed = share * real[one] + (1 - share) * real[other] + np.float32(0.15) * (real[third] - real[fourth])
        mixed += rng.standard_normal(mixed.shape, np.float32) * np.float32(0.02 / mixed.shape[2] ** 0.5)
        yield mixed / np.linalg.norm(mixed, axis=-1, keepdims=True)


def measure_index(args: argparse.Namespace) -> None:
    if args.queries is None:
        raise OptionError("--index searches with captions: give --queries FILE")
    model = blip2rt.load(args.model, threads=args.threads)
    lines = args.queries.read_text().splitlines()[: args.count]
    texts = np.stack([model.embed_text(line.split("\t")[-1]) for line in lines])
    real, rng = model.embed_image(originals(args.source, args.photos)), np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=args.folder) as name, Index.create(f"{name}/x", name, model) as opened:
        row, started = 0, time.perf_counter()
        for embeds in synthetic(real, args.index, rng):
            rows = range(row, row + len(embeds))
            opened.vectors.write(rows, embeds)
            opened.catalog.put(File(i, f"{i // 10000:05d}.tar/{i:09d}.jpg", 40_000, 1, rng.bytes(32)) for i in rows)
            row += len(embeds)
        opened.refresh()
        took = time.perf_counter() - started
        sizes = {file.name: round(file.stat().st_size / args.index) for file in opened.path.iterdir()}
        print(f"{args.index:,} pictures of {real.shape[1]} vectors: built in {took:.1f} s, bytes a picture: {sizes}")
        measure_queries(opened, texts)


def measure_queries(opened: Index, texts: np.ndarray) -> None:
    exact = [(np.zeros(0, np.int64), np.zeros(0, np.float32)) for _ in texts]
    for rows, embeds in opened.blocks(opened.used_rows()):
        scores = (embeds.reshape(-1, embeds.shape[2]) @ texts.T).reshape(*embeds.shape[:2], -1).max(axis=1)
        for text, (names, known) in enumerate(exact):
            names, known = np.append(names, rows), np.append(known, scores[:, text])
            best = np.argsort(-known)[:10]
            exact[text] = names[best], known[best]
    opened.refresh()  # opens the shortlist again, now mapped into memory
    found, times, spent = zip(*(_search(opened, text) for text in texts), strict=True)
    recall = np.mean([len({*rows} & {*best.tolist()}) / 10 for rows, (best, _) in zip(found, exact, strict=True)])
    figures = 1000 * np.array([np.median(times), np.percentile(times, 95), np.median(spent)])
    print(f"{100 * recall:.2f} % of the exact ten are found; ms, p95, CPU ms of a query: {figures.round(1)}")


def _search(opened: Index, text: np.ndarray) -> tuple[list[int], float, float]:
    """Return the ten best rows, and the seconds and the processor time that finding them and their names takes."""
    started, spent = time.perf_counter(), time.process_time()
    rows = opened.nearest(text, 10)[0].tolist()
    opened.catalog.at(rows)
    return rows, time.perf_counter() - started, time.process_time() - spent


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
    parser.add_argument("--queries", type=path, metavar="FILE", help="captions to search with, one a line")
    parser.add_argument("--count", type=whole(1), default=200, metavar="N", help="searches")
    parser.add_argument("--folder", type=path, metavar="DIR", help="where the index is built (default: /tmp)")
    return parser


def main() -> int:
    return run("python -m benchmarks.gallery", lambda: _run(_parser().parse_args()))


def _run(args: argparse.Namespace) -> None:
    measure_index(args) if args.index else measure_captions(args)


if __name__ == "__main__":
    raise SystemExit(main())
