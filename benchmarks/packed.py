"""Size, recall and query time of a packed index of synthetic pictures: `python -m benchmarks.packed`.

Each synthetic picture mixes vectors of real ones (--source), adds a difference of two more and a little noise. They are
stored in --parts indexes, which `blip2rt merge` packs. Queries are captions (--queries, one a line). The exact ten best
are those of the vectors in float32, before anything was stored.
"""

from __future__ import annotations

import argparse
import csv
import resource
import shutil
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

import blip2rt
from blip2rt.command_line import Parser, path, run, whole
from blip2rt.gallery import Index, index_manifest
from blip2rt.gallery.catalog import Catalog, File
from blip2rt.gallery.packed.merge import Part, merge, sample_texts
from blip2rt.gallery.packed.vectors import PackedVectors
from blip2rt.gallery.sources import Picture, Sources
from blip2rt.gallery.vectors import Vectors
from blip2rt.gallery.walk import walk

BLOCK = 4096


def real_vectors(source: Path, count: int, model: blip2rt.Model) -> np.ndarray:
    """image_embeds (N, Q, E) of pictures, or of an .npy file of them."""
    if source.suffix == ".npy":
        found: np.ndarray = np.load(source)[:count].astype(np.float32)
        return found
    paths = (item.path for item in walk(Sources((str(source),), recursive=True)) if isinstance(item, Picture))
    return model.embed_image(list(islice(paths, count)))


def synthetic(real: np.ndarray, count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield image_embeds (n, Q, E), in blocks."""
    for start in range(0, count, BLOCK):
        n = min(BLOCK, count - start)
        one, other, third, fourth = rng.integers(0, len(real), (4, n))
        share = rng.uniform(0.5, 1, (n, 1, 1)).astype(np.float32)
        mixed = share * real[one] + (1 - share) * real[other] + np.float32(0.15) * (real[third] - real[fourth])
        mixed += rng.standard_normal(mixed.shape, np.float32) * np.float32(0.02 / mixed.shape[2] ** 0.5)
        yield mixed / np.linalg.norm(mixed, axis=-1, keepdims=True)


def exact_best(embeds: np.ndarray, first: int, texts: np.ndarray, best: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Add a block to the ten best pictures (names, scores) of each text."""
    scores = (embeds.reshape(-1, embeds.shape[2]) @ texts.T).reshape(len(embeds), embeds.shape[1], -1).max(axis=1)
    for text, (names, known) in enumerate(best):
        names = np.append(names, np.arange(first, first + len(embeds)))
        known = np.append(known, scores[:, text])
        top = np.argsort(-known)[:10]
        best[text] = names[top], known[top]


def write_parts(args: argparse.Namespace, model: blip2rt.Model, texts: np.ndarray) -> tuple[list[Path], list[set[str]]]:
    """Write the indexes to merge. Return their folders, and the names of the exact ten best of each text."""
    rng, real = np.random.default_rng(0), real_vectors(args.source, args.photos, model)
    best = [(np.zeros(0, np.int64), np.zeros(0, np.float32)) for _ in texts]
    folders, first = [], 0
    for number in range(args.parts):
        folder, root = args.out / f"part{number}", args.out / f"shards{number}"
        root.mkdir(parents=True)
        Index.create(folder, root, model).close()
        vectors, catalog = Vectors(folder / "vectors.i8", *real.shape[1:]), Catalog(folder / "files.db", True)
        count, row = args.pictures // args.parts, 0
        for embeds in synthetic(real, count, rng):
            exact_best(embeds, first, texts, best)
            rows = range(row, row + len(embeds))
            vectors.write(rows, embeds)
            names = [f"{i // 10000:05d}.tar/{i:09d}.jpg" for i in range(first, first + len(embeds))]
            catalog.put(File(r, n, 40_000, 1, rng.bytes(32)) for r, n in zip(rows, names, strict=True))
            row, first = row + len(embeds), first + len(embeds)
        catalog.close()
        folders.append(folder)
    return folders, [{f"{name:09d}" for name in names.tolist()} for names, _ in best]


def measure(args: argparse.Namespace) -> None:
    model = blip2rt.load(args.model, threads=args.threads)
    with open(args.queries, encoding="utf-8") as file:
        lines = [text for (text, *_) in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if text]
    queries = lines[: args.count]
    texts = np.stack([model.embed_text(text) for text in queries])
    folders, exact = write_parts(args, model, texts)
    opened = [Index.open(folder, model) for folder in folders]
    parts = [Part(each.path, each.root, each.catalog, each.vectors) for each in opened]
    started, spent = time.monotonic(), time.process_time()
    embed = partial(_embed, model)
    merge(parts, args.out / "packed", index_manifest.fields_of(model.bundle), embed, None, print)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(
        f"merged in {time.monotonic() - started:.0f} s, {time.process_time() - spent:.0f} s of CPU; peak {peak:.0f} MB"
    )
    sizes = {f.name: round(f.stat().st_size / args.pictures, 1) for f in (args.out / "packed").iterdir()}
    print(f"bytes a picture: {sum(sizes.values()):.0f}, {sizes}")
    for folder in folders:
        shutil.rmtree(folder)
    with Index.open(args.out / "packed", model) as index:
        assert isinstance(index.packed, PackedVectors)
        for exhaustive in (False, True):
            recall, wall, cpu = [], [], []
            for text, best in zip(texts, exact, strict=True):
                started, spent = time.perf_counter(), time.process_time()
                rows, _ = index.nearest(text, 10, exhaustive)
                files = index.catalog.at(rows.tolist())
                wall.append(time.perf_counter() - started)
                cpu.append(time.process_time() - spent)
                recall.append(len({Path(file.path).stem for file in files.values()} & best) / 10)
            times = [1000 * value for value in (np.median(wall), np.percentile(wall, 95), np.median(cpu))]
            name = "every record" if exhaustive else "search"
            print(f"{name}: {100 * np.mean(recall):.2f} % of the exact ten; ms, p95, CPU ms: {np.round(times, 1)}")


def _embed(model: blip2rt.Model) -> np.ndarray:
    return np.stack([model.embed_text(text) for text in sample_texts(None)])


def _parser() -> Parser:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--source", type=path, required=True, metavar="DIR", help="pictures, or an .npy of their vectors"
    )
    parser.add_argument("--queries", type=path, required=True, metavar="FILE", help="captions, one a line")
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="a new folder, for the indexes")
    parser.add_argument("--photos", type=whole(1), default=20_000, metavar="N", help="pictures of --source to use")
    parser.add_argument("--pictures", type=whole(1), default=100_000, metavar="N", help="synthetic pictures")
    parser.add_argument("--parts", type=whole(1), default=4, metavar="N", help="indexes to merge")
    parser.add_argument("--count", type=whole(1), default=200, metavar="N", help="queries")
    parser.add_argument("--threads", type=whole(1), default=1, metavar="N", help="threads of the graphs")
    parser.add_argument("--model", metavar="BUNDLE", help="a bundle (default: nano)")
    return parser


def main() -> int:
    return run("python -m benchmarks.packed", lambda: measure(_parser().parse_args()))


if __name__ == "__main__":
    raise SystemExit(main())
