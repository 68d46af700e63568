r"""Prepare data for a training: `blip2rt-train prepare shards|index|capfilt` (each has a --help).

    blip2rt-train prepare shards --data captions.json --images coco/train2014 --out DIR
        a list of images and texts (see readers.py) -> DIR/000000.tar, 000001.tar, ..., with their indices
    blip2rt-train prepare index --data 'shards/*.tar'
        index shards that another tool wrote, ahead of a training
    blip2rt-train prepare capfilt --data web.tsv --images web --captioner runs/captions --out web-best.tsv
        a model's captions, ranked together with the existing ones: the best two of each image

COCO, Flickr and Visual Genome list files on your disk: use `shards`. Conceptual Captions (TSV), SBU and LAION (parquet)
list URLs: use img2dataset, whose shards a training reads as they are. A TSV needs a header, `url<TAB>caption`:

    pip install img2dataset
    img2dataset --url_list laion.parquet --input_format parquet --url_col URL --caption_col TEXT \
        --output_format webdataset --output_folder shards/laion --image_size 384 --resize_mode keep_ratio \
        --resize_only_if_bigger True --processes_count 16 --thread_count 64

Only `capfilt` needs a model, and imports it when it runs.
"""

from __future__ import annotations

from .cli import run_command, run_main

if __name__ == "__main__":  # by its name, so that a package that is missing below is one line
    raise SystemExit(run_command("prepare"))


import argparse
import tarfile
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blip2rt.bundle.atomic import AtomicFolder
from blip2rt.command_line import Parser, nonempty, whole
from blip2rt.errors import Blip2rtError, OptionError
from blip2rt.object_storage import Url, is_url, local_output

from .data.readers import read_data
from .data.samples import BadSamples, Dataset, error_text
from .data.shard_index import Shard, summarize
from .data.shards import add_sample, expand_shards
from .data.transforms import read_image
from .progress import bar

if TYPE_CHECKING:
    from .capfilt import FilterOptions


def write_shards(data: Dataset, out: Path, per_shard: int, bad: BadSamples, seed: int = 0) -> list[Shard]:
    """Write images in random order, `per_shard` to a shard, each with all its texts; return the shards.

    Every image is decoded once as a check. An existing folder is rejected.
    """
    if out.exists():
        raise Blip2rtError(f"--out {str(out)!r} exists; remove it or choose another folder")
    groups = data.by_image()
    order = np.random.default_rng(seed).permutation(len(groups))
    images = _readable(bar(order, unit="img", desc=out.name), data, bad)
    with AtomicFolder(out) as atomic:
        for number in count():
            some = islice(images, per_shard)
            if (first := next(some, None)) is None:
                break
            with tarfile.open(atomic.folder / f"{number:06d}.tar", "w") as shard:
                for key, (image, content) in enumerate(chain([first], some), number * per_shard):
                    path = data.paths[image]
                    add_sample(shard, f"{key:09d}{path.suffix.lower()}", path.name, content, groups[image])
        if not number:
            raise Blip2rtError("no image can be read; nothing was written")
        atomic.finish()
    return expand_shards(str(out))


def _readable(order: Iterable[int], data: Dataset, bad: BadSamples) -> Iterator[tuple[int, bytes]]:
    """Yield the images that can be decoded, with their files' contents."""
    for image in order:
        try:
            content = data.paths[image].read_bytes()
            read_image(content)
        except (OSError, ValueError) as error:
            bad.add(str(data.paths[image]), error_text(error))
            continue
        yield image, content


def _skipped(bad: BadSamples) -> str:
    """Return how many samples were skipped, with the first of them."""
    first = next(iter(bad.found.items()), None)
    return f"{len(bad.found)} skipped" + (f", the first {first[0]} ({first[1]})" if first else "")


def _shards(args: argparse.Namespace) -> None:
    bad = BadSamples(args.max_bad)
    data = read_data(args.data, args.images, bad)
    made = write_shards(data, Path(args.out), args.per_shard, bad, args.seed)
    samples = sum(summary.count for summary in summarize(made, Path(args.out)))
    print(f"{args.out}: {len(made)} shards, {samples} images, {_skipped(bad)}")


def _index(args: argparse.Namespace) -> None:
    bad = BadSamples(args.max_bad)
    counts = []
    for found in summarize(expand_shards(args.data), Path(args.cache), args.processes):
        counts.append(found.count)
        for name, reason in found.faults:
            bad.add(name, reason)
    summary = f"{len(counts)} shards, {sum(counts)} samples, {counts.count(0)} empty shards"
    print(f"{args.data}: {summary}, {_skipped(bad)}")


def _capfilt(args: argparse.Namespace) -> None:
    from . import capfilt

    if not args.captioner and not args.pool and not args.scorer:
        raise Blip2rtError("nothing gives captions and nothing ranks them: give --captioner, or --scorer with --pool")
    if not 0 < args.top_p <= 1:
        raise OptionError(f"--top-p is {args.top_p}: give a number above 0, at most 1")
    if not args.ray and (args.workers, args.threads, args.gpus) != (None, 1, 0.0):
        raise OptionError("--workers, --threads and --gpus are of a cluster: give --ray ADDRESS, or leave them out")
    options, out = _filter_options(args), Url.parse(args.out) if is_url(args.out) else Path(args.out)
    of_shards = args.data.endswith(".tar") or is_url(args.data) or any(Path(args.data).glob("*.tar"))
    if args.ray:
        from blip2rt.integrations.ray_cluster import Workers

        from .capfilt.cluster import filter_on_cluster

        if not of_shards:
            raise OptionError(f"--ray shares shards, but --data {args.data!r} has none: make some with prepare shards")
        workers = Workers(args.ray, args.workers, args.threads, args.gpus)
        images = filter_on_cluster(expand_shards(args.data), out, workers, partial(_filter_options, args), options.bad)
    elif of_shards:
        images = capfilt.filter_shards(expand_shards(args.data), out, options)
    else:
        with local_output(args.out, capfilt.CANDIDATES) as table:
            images = capfilt.filter_list(args.data, args.images, Path(table), options)
    print(f"{args.out}: {images} images, {_skipped(options.bad)}")


def _filter_options(args: argparse.Namespace) -> FilterOptions:
    """Return how to filter. The models are opened when the first captions are missing, and once."""
    from . import capfilt  # imports the runtime, and torch for checkpoints
    from .evaluation.predictors import Sampling, open_predictor

    bad = BadSamples(args.max_bad)

    @cache
    def models() -> Any:
        captioner = open_predictor(args.captioner, precision=args.precision) if args.captioner else None
        scorer = capfilt.open_scorer(args.scorer, captioner, args.precision)
        return captioner, scorer, capfilt.CaptionPool(Path(args.pool), scorer, bad) if args.pool else None

    def open_capfilt(stream: int) -> capfilt.CapFilt:
        sampling = Sampling(args.own, args.top_p, (args.seed + stream) % 2**63)
        captioner, scorer, pool = models()
        return capfilt.CapFilt(captioner, scorer, pool, sampling, args.retrieved)

    depends = ("data", "images", "captioner", "scorer", "pool", "own", "top_p", "retrieved", "seed")
    record = {name: getattr(args, name) for name in depends}
    return capfilt.FilterOptions(open_capfilt, record, args.keep, args.batch_size, bad)


def _parser() -> Parser:
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, work: Callable[[argparse.Namespace], None], about: str, data: str = "") -> Add:
        made = commands.add_parser(name, help=about)
        made.set_defaults(work=work)
        if data:
            made.add_argument("--data", type=nonempty, required=True, metavar="FILE", help=data)
            made.add_argument("--max-bad", type=whole(0), default=1000, metavar="N", help="allowed unusable samples")
        return partial(_add, made)

    listed = ".tsv, .csv, .jsonl, COCO .json, or a folder of images with .txt files"
    add = command("shards", _shards, "a list of images and texts -> shards", listed)
    add("--images", "FOLDER", "folder of the images in the list")
    add("--out", "FOLDER", "folder to write", required=True)
    add("--per-shard", "N", "images per shard", 5000, whole(1))
    add("--cache", "FOLDER", "of older commands; the indices lie beside the shards")
    add("--seed", "N", "seed of the images' order", 0, whole(0))
    add = command("index", _index, "index shards ahead of a training", "a folder, 'a/*.tar' or 'a/{0000..0099}.tar'")
    add("--cache", "FOLDER", "folder of the indices if the shards' is read-only: `features` of the recipe", "features")
    add("--processes", "N", "processes (default: one per processor)", None, whole(1))
    about = "captions by a model and from a pool, ranked by a model; the best stay"
    add = command("capfilt", _capfilt, about, ".tsv, .csv, .jsonl, COCO .json, a folder of images, or shards")
    add("--images", "FOLDER", "folder of the images in the list")
    add("--out", "OUT", ".tsv to write; for shards, a folder of shards", required=True)
    add("--captioner", "MODEL", "bundle or checkpoint that writes captions (default: rank existing ones only)")
    scorer = "what ranks: a bundle, a stage-1 checkpoint, or clip:FOLDER of a CLIPModel (default: the captioner)"
    add("--scorer", "MODEL", scorer)
    add("--keep", "N", "captions kept per image", 2, whole(1))
    add("--own", "N", "captions sampled per image, besides the captioner's best one", 10, whole(0, 100))
    add("--top-p", "X", "nucleus of the sampling", 0.9, float)
    add("--pool", "FILE", "captions without images, one per line")
    add("--retrieved", "N", "nearest captions of the pool per image", 10, whole(1))
    add("--batch-size", "N", "images per call", 16, whole(1))
    add("--precision", None, "of checkpoints", None, choices=("fp32", "bf16", "fp16"))
    add("--seed", "N", "seed of the sampling", 0, whole(0))
    add("--ray", "ADDRESS", "share the shards among the workers of a Ray cluster, of one file system")
    add("--workers", "N", "workers of --ray (default: as many as fit)", None, whole(1))
    add("--threads", "N", "processors of each worker", 1, whole(1))
    add("--gpus", "N", "GPUs of each worker, such as 0.5, for checkpoints", 0.0, float)
    return parser


Add = Callable[..., None]


def _add(
    parser: Parser, flag: str, metavar: str | None, help: str, default: Any = "", type: Any = None, **options: Any
) -> None:
    """Add an option; a required one must not be empty."""
    kind = nonempty if "required" in options else type
    parser.add_argument(flag, type=kind, default=default, metavar=metavar, help=help, **options)


def main(argv: list[str] | None = None) -> int:
    return run_main(lambda: (args := _parser().parse_args(argv)).work(args))
