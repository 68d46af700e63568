"""What captioning a folder costs beside the graphs, and what an index costs: `python -m benchmarks.gallery`.

Photographs are made of those in --source, enlarged to so many megapixels and with the noise of a camera. The ways
take turns: the gallery; the encoder and the loop alone, on pixels in memory, with all threads and in the gallery's
lanes; `caption` on each file; decoding alone on one core. The memory is that of the gallery on the first photographs.
`--index` measures an index of synthetic pictures instead: mixtures of the vectors of --source's.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

import blip2rt
from blip2rt.command_line import Parser, path, run, whole
from blip2rt.errors import OptionError
from blip2rt.gallery.ahead import Pace
from blip2rt.gallery.captions import BATCH, Care, Outputs, Words, caption
from blip2rt.gallery.lanes import in_order
from blip2rt.gallery.pictures import Picture, Sources
from blip2rt.gallery.vectors import Shortlist, Vectors, one_vector
from blip2rt.gallery.walk import walk
from blip2rt.gallery.wording import Wording

ROOT = Path(__file__).parents[1]
WAYS = ("threads", "lanes", "each", "decoding")


def originals(source: Path, count: int) -> list[str]:
    """The paths of `count` pictures, repeated where there are fewer."""
    found = [each.path for each in walk(Sources((str(source),), recursive=True)) if isinstance(each, Picture)]
    if not found:
        raise OptionError(f"no picture is in --source {source}")
    return [found[i % len(found)] for i in range(count)]


def enlarge(name: str, target: Path, megapixels: float, rng: np.random.Generator) -> None:
    """A picture -> a JPEG of so many megapixels, 4 : 3, as heavy as a camera's."""
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    with Image.open(name) as image:
        large = image.convert("RGB").resize((height * 4 // 3, height), Image.Resampling.BICUBIC)
    noise = rng.normal(0, 5, (height, height * 4 // 3, 1))
    noisy = np.clip(np.asarray(large, np.float32) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(target, "JPEG", quality=88)


def captions(args: argparse.Namespace) -> None:
    pace = Pace(args.batch_size, args.workers, args.lanes, max(1, args.threads // args.lanes))
    model = blip2rt.load(args.model, threads=pace.threads, scaled_jpeg=args.scaled_jpeg)
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        names = originals(args.source, args.photos)
        for i, name in enumerate(names if args.megapixels else []):
            names[i] = f"{folder}/{i:06d}.jpg"
            enlarge(name, Path(names[i]), args.megapixels, rng)
        size = sum(Path(name).stat().st_size for name in names) / len(names)
        print(f"{len(names)} photographs of {size / 1e6:.2f} MB each; {pace}")

        def gallery(paths: Sequence[str] = names) -> None:
            out = Outputs(out=f"{folder}/out.jsonl", overwrite=True)
            caption(model, Sources(paths), Words(None, None, {}, Wording()), out, Care(), pace)

        gallery(names[:64])
        print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
        whole = blip2rt.load(args.model, threads=args.threads, scaled_jpeg=args.scaled_jpeg)
        prepared = [model.prepare(name) for name in names]

        batches = [prepared[start : start + pace.batch] for start in range(0, len(prepared), pace.batch)]
        task = whole.task()
        whole.generate(prepared[:2], task)  # graphs are loaded
        ways: dict[str, tuple[str, Callable[[], object]]] = {
            "threads": ("encoder and loop, all threads", lambda: [whole.generate(batch, task) for batch in batches]),
            "lanes": (
                f"encoder and loop, {pace.lanes} lanes",
                lambda: [*in_order(batches, lambda batch: model.generate(batch, task), pace.lanes)],
            ),
            "each": ("caption on each", lambda: [whole.caption(name) for name in names]),
            "decoding": ("decoding alone", lambda: [whole.prepare(name) for name in names]),
        }
        chosen = [("gallery", gallery), *(ways[name] for name in args.ways)]
        times: dict[str, list[float]] = {name: [] for name, _ in chosen}
        for _ in range(args.repeat):
            for name, way in chosen:
                began = time.perf_counter()
                way()
                times[name].append(time.perf_counter() - began)
    for name, seconds in times.items():
        ratio = median(g / s for s, g in zip(seconds, times["gallery"], strict=True))
        print(f"{name:30s} {1000 * median(seconds) / len(names):7.1f} ms a picture; the gallery takes {ratio:5.2f} x")


def synthetic(real: np.ndarray, count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """image_embeds (n, Q, E) of real pictures -> those of `count` mixtures, some at a time."""
    for start in range(0, count, 4096):
        n = min(4096, count - start)
        one, other, third, fourth = rng.integers(0, len(real), (4, n))
        share = rng.uniform(0.25, 0.75, (n, 1, 1)).astype(np.float32)
        mixed = share * real[one] + (1 - share) * real[other] + 0.3 * (real[third] - real[fourth])
        yield mixed / np.linalg.norm(mixed, axis=-1, keepdims=True)


def index(args: argparse.Namespace) -> None:
    model = blip2rt.load(args.model, threads=args.threads)
    names = originals(args.source, args.photos)
    real = model.embed_image(names)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        place, count = Path(folder), args.index
        vectors = Vectors(place / "vectors.i8", *real.shape[1:])
        graph = Shortlist(place / "shortlist.usearch", real.shape[2], view=False)
        at, seconds = 0, 0.0
        for embeds in synthetic(real, count, rng):
            places = range(at, at + len(embeds))
            began = time.perf_counter()
            vectors.write(places, embeds)
            graph.add(places, one_vector(embeds))
            seconds += time.perf_counter() - began
            at += len(embeds)
        began = time.perf_counter()
        graph.save()
        seconds += time.perf_counter() - began
        sizes = {file.name: file.stat().st_size / count for file in place.iterdir()}
        print(f"{count:,} pictures of {real.shape[1]} vectors: built in {seconds:.1f} s, bytes a picture: {sizes}")
        seen = Shortlist(place / "shortlist.usearch", real.shape[2], view=True)
        asked = [vectors.read([int(i)])[0, rng.integers(real.shape[1])] for i in rng.integers(0, count, args.queries)]
        asked = [v + rng.normal(0, 0.03, v.shape).astype(np.float32) for v in asked]
        kept, quick, slow = [], [], []
        for text in asked:
            began = time.perf_counter()
            near = np.sort(seen.near(text, 200))
            best = near[np.argsort(-(vectors.read(near) @ text).max(axis=1))[:10]]
            quick.append(time.perf_counter() - began)
            began = time.perf_counter()
            scores = [(embeds @ text).max(axis=1) for _, embeds in vectors.blocks(np.arange(count))]
            exact = np.argsort(-np.concatenate(scores))[:10]
            slow.append(time.perf_counter() - began)
            kept.append(len(set(best.tolist()) & set(exact.tolist())) / 10)
        print(f"query {1000 * median(quick):.1f} ms, exact {1000 * median(slow):.0f} ms; of the exact ten "
              f"{100 * np.mean(kept):.1f} % are kept")  # fmt: skip


def _parser() -> Parser:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=path, default=ROOT / "docs", metavar="DIR", help="pictures to start from")
    parser.add_argument("--photos", type=whole(1), default=64, metavar="N", help="photographs")
    parser.add_argument("--megapixels", type=float, default=3.0, metavar="X",
                        help="of each; 0 takes the pictures of --source as they are (default: 3)")  # fmt: skip
    parser.add_argument("--batch-size", type=whole(1), default=BATCH, metavar="N", help="of the gallery")
    parser.add_argument("--workers", type=whole(1), default=2, metavar="N", help="threads that decode")
    parser.add_argument("--threads", type=whole(1), default=2, metavar="N", help="threads of the graphs, in all")
    parser.add_argument("--lanes", type=whole(1), default=2, metavar="N", help="batches in the graphs at a time")
    parser.add_argument("--scaled-jpeg", action="store_true", help="as the flag of `blip2rt caption`")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, metavar="WAY",
                        help=f"beside the gallery, of {', '.join(WAYS)} (default: all)")  # fmt: skip
    parser.add_argument("--repeat", type=whole(1), default=3, metavar="N", help="turns")
    parser.add_argument("--model", metavar="BUNDLE", help="a bundle (default: nano)")
    parser.add_argument("--index", type=whole(1), metavar="N", help="measure an index of N synthetic pictures instead")
    parser.add_argument("--queries", type=whole(1), default=50, metavar="N", help="of the index")
    return parser


def main() -> int:
    return run("python -m benchmarks.gallery", lambda: _run(_parser().parse_args()))


def _run(args: argparse.Namespace) -> None:
    index(args) if args.index else captions(args)


if __name__ == "__main__":
    raise SystemExit(main())
