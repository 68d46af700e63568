r"""Data before a training: `python -m train.prepare flickr8k|shards|list|index|capfilt` (each has a --help).

    python -m train.prepare flickr8k --source data/flickr8k
        Flickr8k's own text files -> train.tsv, dev.tsv and test.tsv beside them
    python -m train.prepare shards --data captions.json --images coco/train2014 --out DIR
        any list of readers.py -> DIR/000000.tar, 000001.tar, ..., with their indices
    python -m train.prepare list --data laion.parquet --out laion.jsonl
        a parquet or TSV list of URLs and captions -> the list that img2dataset takes
    python -m train.prepare index --data 'shards/*.tar' --cache FEATURES
        the indices of shards that somebody else has written, ahead of a training
    python -m train.prepare capfilt --data web.tsv --images web --captioner runs/captions --out web-best.tsv
        captions by a model, ranked beside the given ones: the best two of each image

COCO, Flickr and Visual Genome are lists of files that one has: `shards`. Conceptual Captions (TSV), SBU and LAION
(parquet) are lists of URLs: `list`, then img2dataset, whose shards are read as they are:

    pip install img2dataset
    img2dataset --url_list laion.jsonl --input_format jsonl --url_col url --caption_col caption \
        --output_format webdataset --output_folder shards/laion --image_size 384 --resize_mode keep_ratio \
        --resize_only_if_bigger True --processes_count 16 --thread_count 64

Knows files; of models only `capfilt`, which imports them when it runs.
"""

from __future__ import annotations

from .cli import run_command, run_main

if __name__ == "__main__":  # by its name, so that a package that is missing below is one line
    raise SystemExit(run_command("prepare"))


import argparse
import csv
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from blip2rt.bundle.atomic import AtomicFolder
from blip2rt.command_line import Parser, nonempty, whole
from blip2rt.errors import Blip2rtError

from .data.flickr8k import write_tables
from .data.readers import read_data
from .data.samples import BadSamples, Dataset, Sample, table_rows, text_fault
from .data.shards import add_sample, expand_shards, open_index
from .data.transforms import read_image


def write_shards(data: Dataset, out: Path, per_shard: int, bad: BadSamples, seed: int = 0) -> list[Path]:
    """Images in random order, `per_shard` to a shard, each with all its texts; returns the shards.

    Every image is decoded once to see that it can be; a folder that exists is not written over.
    """
    if out.exists():
        raise Blip2rtError(f"--out {str(out)!r} exists; remove it or choose another folder")
    groups = data.by_image()
    order = np.random.default_rng(seed).permutation(len(groups))
    good = _readable(tqdm(order, unit="img", desc=out.name), data, groups, bad)
    with AtomicFolder(out) as whole:
        shards = 0
        writer: tarfile.TarFile | None = None
        for key, (path, content, texts) in enumerate(good):
            if key % per_shard == 0:
                if writer is not None:
                    writer.close()
                writer = tarfile.open(whole.folder / f"{shards:06d}.tar", "w")  # noqa: SIM115  # closed when it is full
                shards += 1
            assert writer is not None
            add_sample(writer, f"{key:09d}", path, content, texts)
        if writer is None:
            raise Blip2rtError("no image can be read; nothing was written")
        writer.close()
        whole.finish()
    return expand_shards(str(out))


def _readable(
    order: Any, data: Dataset, groups: list[list[Sample]], bad: BadSamples
) -> Iterator[tuple[Path, bytes, list[Sample]]]:
    for image in order:
        path = data.paths[image]
        try:
            content = path.read_bytes()
            read_image(content)
        except (OSError, ValueError) as error:
            bad.add(str(path), " ".join(str(error).split()))
            continue
        yield path, content, groups[image]


def url_list(source: Path, bad: BadSamples) -> Iterator[dict[str, str]]:
    """{url, caption} of each row of a parquet list (LAION, SBU) or a TSV without a header (Conceptual Captions).

    Rows that cannot be used are counted in `bad`.
    """
    for place, url, text in (_parquet if source.suffix == ".parquet" else _urls)(source, bad):
        fault = text_fault(text)
        if not isinstance(url, str) or not url.startswith("http"):
            fault = "it has no URL"
        if fault is None:
            yield {"url": str(url), "caption": str(text)}
        else:
            bad.add(place, fault)


def _parquet(source: Path, bad: BadSamples) -> Iterator[tuple[str, Any, Any]]:
    """Place, URL and caption of each row."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise Blip2rtError("pyarrow is not installed: pip install pyarrow") from error
    try:
        table = parquet.ParquetFile(source)
    except (OSError, pyarrow.ArrowException) as error:
        raise Blip2rtError(
            f"{source} is no parquet file ({' '.join(str(error).split())}): download it again"
        ) from error
    columns = {name.lower(): name for name in table.schema_arrow.names}
    url, text = (next((columns[n] for n in names if n in columns), None) for names in (_URL, _TEXT))
    if url is None or text is None:
        raise Blip2rtError(f"{source} needs columns {' or '.join(_URL)} and {' or '.join(_TEXT)}; has {list(columns)}")
    number = 0
    for batch in table.iter_batches(columns=[url, text]):
        for row in batch.to_pylist():
            number += 1
            yield f"{source}, row {number}", row[url], row[text]


def _urls(source: Path, bad: BadSamples) -> Iterator[tuple[str, Any, Any]]:
    """Place, URL and caption of each line."""
    with source.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        for place, cells in table_rows(source, csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), bad):
            if len(cells) == 2:
                url_first = cells[0].startswith("http")  # CC12M has the URL first, CC3M the caption
                yield place, cells[1 - url_first], cells[int(url_first)]
            elif cells:
                bad.add(place, f"it has {len(cells)} columns, not a URL and a caption")


_URL, _TEXT = ("url", "image_url"), ("caption", "text", "top_caption")


def _flickr8k(args: argparse.Namespace) -> None:
    source = Path(args.source)
    images, out = Path(args.images or source / "images"), Path(args.out or source)
    print("\n".join(write_tables(source, images, out)))


def _left_out(bad: BadSamples) -> str:
    """How many samples were left out, with the first of them."""
    first = next(iter(bad.found.items()), None)
    return f"{len(bad.found)} left out" + (f", the first {first[0]} ({first[1]})" if first else "")


def _shards(args: argparse.Namespace) -> None:
    bad = BadSamples(args.max_bad)
    data = read_data(args.data, args.images, bad)
    made = write_shards(data, Path(args.out), args.per_shard, bad, args.seed)
    samples = sum(len(open_index(path, Path(args.cache or args.out)).rows) for path in made)
    print(f"{args.out}: {len(made)} shards, {samples} images, {_left_out(bad)}")


def _list(args: argparse.Namespace) -> None:
    source, out = Path(args.data), Path(args.out)
    if not source.is_file():
        raise Blip2rtError(f"--data {args.data!r} does not exist")
    out.parent.mkdir(parents=True, exist_ok=True)
    count, bad = 0, BadSamples(args.max_bad)
    with out.open("w", encoding="utf-8") as file:
        for row in tqdm(url_list(source, bad), unit="row"):
            file.write(json.dumps(row) + "\n")
            count += 1
    if not count:
        raise Blip2rtError(f"{source} has no rows of a URL and a caption")
    print(
        f"{out}: {count} rows, {_left_out(bad)}; next: img2dataset --url_list {out} --input_format jsonl ... "
        "(python -m train.prepare -h)"
    )


def _index(args: argparse.Namespace) -> None:
    bad = BadSamples(args.max_bad)
    counts = []
    for path in tqdm(expand_shards(args.data), unit="shard"):
        index = open_index(path, Path(args.cache))
        counts.append(len(index.rows))
        for name, reason in index.faults:
            bad.add(name, reason)
    told = f"{len(counts)} shards, {sum(counts)} samples, {counts.count(0)} empty shards"
    print(f"{args.data}: {told}, {_left_out(bad)}")


def _capfilt(args: argparse.Namespace) -> None:
    from . import capfilt  # the runtime, or torch
    from .evaluation.predictors import open_predictor

    bad = BadSamples(args.max_bad)
    if not args.captioner and not args.pool and not args.scorer:
        raise Blip2rtError("nothing gives captions and nothing ranks them: give --captioner, or --scorer with --pool")
    captioner = open_predictor(args.captioner, precision=args.precision) if args.captioner else None
    scorer = capfilt.open_scorer(args.scorer, captioner, args.precision)
    pool = capfilt.Pool(Path(args.pool), scorer, bad) if args.pool else None
    wanted = capfilt.Wanted(args.keep, args.own, args.top_p, args.retrieved, args.seed)
    told = ("data", "images", "captioner", "scorer", "pool", "keep", "own", "top_p", "retrieved", "seed")
    work = capfilt.Work({name: getattr(args, name) for name in told}, args.batch_size, bad)
    found, out = capfilt.CapFilt(captioner, scorer, pool, wanted), Path(args.out)
    if args.data.endswith(".tar") or any(Path(args.data).glob("*.tar")):
        images = capfilt.filter_shards(args.data, out, Path(args.cache or args.out), found, work)
    else:
        images = capfilt.filter_list(args.data, args.images, out, found, work)
    print(f"{args.out}: {images} images, {_left_out(bad)}")


def _add_max_bad(parser: Parser) -> None:
    parser.add_argument("--max-bad", type=whole(0), default=1000, metavar="N", help="samples that may be unusable")


def _parser() -> Parser:
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    flickr8k = commands.add_parser("flickr8k", help="Flickr8k's own text files -> tables of images and captions")
    flickr8k.add_argument("--source", type=nonempty, required=True, metavar="FOLDER",
                          help="folder of Flickr8k.token.txt and Flickr_8k.*Images.txt")  # fmt: skip
    flickr8k.add_argument("--images", default="", metavar="FOLDER",
                          help="folder of the photographs (default: images in --source)")  # fmt: skip
    flickr8k.add_argument("--out", default="", metavar="FOLDER",
                          help="folder to write train.tsv, dev.tsv and test.tsv in (default: --source)")  # fmt: skip
    flickr8k.set_defaults(work=_flickr8k)
    shards = commands.add_parser("shards", help="a list of images and texts -> shards")
    shards.add_argument("--data", type=nonempty, required=True, metavar="FILE",
                        help=".tsv, .csv, .jsonl, COCO .json, or a folder of images with .txt")  # fmt: skip
    shards.add_argument("--images", default="", metavar="FOLDER", help="folder of the images that the list names")
    shards.add_argument("--out", type=nonempty, required=True, metavar="FOLDER", help="folder to write")
    shards.add_argument("--per-shard", type=whole(1), default=5000, metavar="N", help="images of a shard")
    _add_max_bad(shards)
    shards.add_argument("--cache", default="", metavar="FOLDER",
                        help="folder of the indices, `features` of the recipe (default: --out)")  # fmt: skip
    shards.add_argument("--seed", type=whole(0), default=0, metavar="N", help="seed of the images' order")
    shards.set_defaults(work=_shards)
    urls = commands.add_parser("list", help="URLs and captions -> the list that img2dataset takes")
    urls.add_argument("--data", type=nonempty, required=True, metavar="FILE", help=".parquet or .tsv")
    urls.add_argument("--out", type=nonempty, required=True, metavar="FILE", help=".jsonl to write")
    _add_max_bad(urls)
    urls.set_defaults(work=_list)
    index = commands.add_parser("index", help="indices of shards, made ahead of a training")
    index.add_argument("--data", type=nonempty, required=True, metavar="SHARDS",
                       help="a folder, 'a/*.tar' or 'a/{0000..0099}.tar'")  # fmt: skip
    index.add_argument("--cache", type=nonempty, required=True, metavar="FOLDER",
                       help="folder of the indices, `features` of the recipe")  # fmt: skip
    _add_max_bad(index)
    index.set_defaults(work=_index)
    _add_capfilt(commands)
    return parser


def _add_capfilt(commands: Any) -> None:
    parser = commands.add_parser("capfilt", help="captions by a model and of a pool, ranked by a model; the best stay")
    parser.add_argument("--data", type=nonempty, required=True, metavar="FILE",
                        help=".tsv, .csv, .jsonl, COCO .json, a folder of images, or shards")  # fmt: skip
    parser.add_argument("--images", default="", metavar="FOLDER", help="folder of the images that the list names")
    parser.add_argument("--out", type=nonempty, required=True, metavar="OUT",
                        help=".tsv to write; of shards a folder of shards")  # fmt: skip
    parser.add_argument("--captioner", default="", metavar="MODEL",
                        help="bundle or checkpoint that writes captions; without it given ones are ranked")  # fmt: skip
    parser.add_argument("--scorer", default="", metavar="MODEL",
                        help="what ranks: a bundle or a checkpoint of stage 1, or clip:FOLDER, a CLIPModel "
                        "(default: the captioner)")  # fmt: skip
    parser.add_argument("--keep", type=whole(1), default=2, metavar="N", help="captions that an image keeps")
    parser.add_argument("--own", type=whole(0), default=10, metavar="N",
                        help="captions drawn of an image, besides the captioner's best one")  # fmt: skip
    parser.add_argument("--top-p", type=float, default=0.9, metavar="X", help="of the draws")
    parser.add_argument("--pool", default="", metavar="FILE", help="captions without images, one a line")
    parser.add_argument("--retrieved", type=whole(1), default=10, metavar="N", help="captions of it an image may get")
    parser.add_argument("--batch-size", type=whole(1), default=16, metavar="N", help="images that go together")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="of checkpoints")
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="seed of the draws")
    parser.add_argument("--cache", default="", metavar="FOLDER",
                        help="folder of the indices of shards (default: --out)")  # fmt: skip
    _add_max_bad(parser)
    parser.set_defaults(work=_capfilt)


def main(argv: list[str] | None = None) -> int:
    def work() -> None:
        args = _parser().parse_args(argv)
        args.work(args)

    return run_main(work)
