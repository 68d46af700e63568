"""The flags of the gallery's commands. Imports little, because every call of `blip2rt` loads it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..command_line import Parser, nonempty, path, whole

if TYPE_CHECKING:
    from .prefetch import Parallelism
    from .sources import Sources

FLAGS = {name: f"--{name}" for name in ("template", "overwrite", "out", "write")}
XMP_NAMES = ("photo.xmp", "photo.jpg.xmp")
_FILES = "files (finished pictures are skipped)"
_CREATED = "the folder made by `blip2rt index`"


def add_sources(command: Parser, help_text: str) -> None:
    """Add the flags that select pictures."""
    command.add_argument("images", nargs="*", type=nonempty, metavar="PATH", help=help_text)
    group = command.add_argument_group("pictures")
    group.add_argument("-r", "--recursive", action="store_true", help="include subfolders")
    lists = "read paths from FILE, one a line or null-separated; - is standard input; may be repeated"
    group.add_argument("--from-file", type=nonempty, action="append", default=[], metavar="FILE", help=lists)


def add_parallelism(group: argparse._ArgumentGroup, batch_size: int, cluster: bool = True) -> None:
    """cluster: whether the command can run on a cluster."""
    batches = f"pictures per batch; on a CPU, two batches run at once and share --threads (default: {batch_size})"
    group.add_argument("--batch-size", type=whole(1, 1024), metavar="N", help=batches)
    workers = "threads that decode pictures ahead (default: one per core, at most 8"
    if cluster:
        ray = "run on a Ray cluster: a head node's address, auto, or local; each worker has --threads (default: 1)"
        group.add_argument("--ray", type=nonempty, metavar="ADDRESS", help=ray)
        gpus = "GPUs of each worker of --ray, such as 0.5 (default: 1 for --backend trt, otherwise 0)"
        group.add_argument("--gpus", type=float, metavar="N", help=gpus)
        workers += "; with --ray, workers: as many as fit"
    group.set_defaults(ray=None, gpus=None)
    group.add_argument("--workers", type=whole(1, 256), metavar="N", help=f"{workers})")


def add_errors(group: argparse._ArgumentGroup) -> None:
    errors = "list failures in FILE: path<TAB>reason lines, or JSON lines if it ends in .jsonl"
    group.add_argument("--errors", type=nonempty, metavar="FILE", help=errors)
    group.add_argument("--strict", action="store_true", help="stop at the first failure")


def add_files(command: Parser, what: str = "description", whole: str = "captions") -> None:
    """Add the flags for output files. what: what goes into a sidecar; whole: what --overwrite replaces."""
    group = command.add_argument_group(_FILES)
    sidecar = "write photo.EXT next to photo.jpg, as in --write txt"
    group.add_argument("--write", type=nonempty, metavar="EXT", help=sidecar)
    group.add_argument("--xmp", action="store_true", help=f"write the {what} to photo.xmp; keep its other fields")
    xmp_name = "name of the sidecar, for photo.jpg; digiKam and darktable read photo.jpg.xmp (default: photo.xmp)"
    group.add_argument("--xmp-name", choices=XMP_NAMES, metavar="NAME", help=xmp_name)
    table = "write one .jsonl, .csv or .parquet FILE"
    group.add_argument("--out", type=nonempty, metavar="FILE", help=table)
    group.add_argument("--overwrite", action="store_true", help=f"replace existing {whole}")
    add_errors(group)


def add_outputs(command: Parser) -> None:
    """Add the flags for output files and for the text around captions."""
    add_files(command)
    group = command.add_argument_group("text")
    group.add_argument("--ask", type=nonempty, metavar="QUESTION", help="write answers to a question, not captions")
    about = "captions of other pictures that guide: a caption a line, or made by `blip2rt pool build`; none: no pool"
    group.add_argument("--pool", type=nonempty, metavar="FILE", help=about)
    template = "the whole text, with {caption}, {stem}, {name} and {folder}"
    group.add_argument("--template", default="{caption}", metavar="TEXT", help=template)
    confidence = "hedge captions whose calibrated probability of being right is below P"
    group.add_argument("--min-confidence", type=float, metavar="P", help=confidence)
    unsure = 'how: write "maybe ...", or nothing'
    group.add_argument("--unsure", choices=("maybe", "silent"), default="maybe", help=unsure)
    add_parallelism(command.add_argument_group("speed"), 16)


def writes(args: argparse.Namespace) -> bool:
    """Whether captions go to files."""
    return bool(args.write or args.xmp or args.xmp_name or args.out)


def sources_of(args: argparse.Namespace) -> Sources:
    from ..errors import OptionError
    from .sources import Sources

    if not args.images and not args.from_file:
        raise OptionError(f"no pictures: give PATH or --from-file (see blip2rt {args.command} --help)")
    if [*args.images, *args.from_file].count("-") > 1:
        raise OptionError("- is given twice, but standard input can be read once: give it once")
    return Sources(tuple(args.images), tuple(args.from_file), args.recursive)


def parallelism_of(args: argparse.Namespace, sources: Sources, batch_size: int) -> Parallelism:
    """Use two workers that share --threads if a CPU has two threads and there are pictures for two batches."""
    from .. import backends
    from ..errors import OptionError
    from .prefetch import Parallelism

    batch_size = args.batch_size or batch_size
    if args.gpus is not None and (args.ray is None or "cuda" not in backends.get(args.backend).devices):
        raise OptionError("--gpus is of the workers of --ray with --backend trt: give both, or leave it out")
    if args.ray is not None:
        return Parallelism(batch_size, 1, 1, args.threads or 1)
    decode_threads = args.workers or min(8, max(2, os.cpu_count() or 1))
    threads = args.threads
    if "cpu" in backends.get(args.backend).devices:
        from ..backends.ort import num_threads, usable_threads
        from ..system import physical_cores
        from .walk import has_more_than

        threads = (num_threads() or physical_cores()) if threads is None else usable_threads(threads)
        if threads >= 2 and has_more_than(2 * batch_size - 1, sources):
            return Parallelism(batch_size, decode_threads, 2, threads // 2)
    return Parallelism(batch_size, decode_threads, 1, args.threads and threads)


def add_tag(command: Parser) -> None:
    """Add the flags of `tag`."""
    group = command.add_argument_group("labels")
    about = 'a label a line, "animal|dog" to place it below another (default: 1,200 everyday ones)'
    group.add_argument("--labels", type=nonempty, metavar="FILE", help=about)
    group.add_argument("--top", type=whole(1), default=10, metavar="N", help="most labels of a picture (default: 10)")
    about = "least calibrated probability of a label (default: 0.3)"
    group.add_argument("--threshold", type=float, default=0.3, metavar="P", help=about)
    add_files(command, "keywords", "labels")
    add_parallelism(command.add_argument_group("speed"), 8, cluster=False)


def add_index(command: Parser) -> None:
    command.add_argument(
        "folder", type=nonempty, metavar="DIR", help="folder of pictures, with its subfolders; or a shard; or a URL"
    )
    group = command.add_argument_group(_FILES)
    group.add_argument(
        "--out", type=nonempty, required=True, metavar="INDEX", help="the folder of the index, or its URL"
    )
    add_errors(group)
    add_parallelism(command.add_argument_group("speed"), 8)


def add_merge(command: Parser) -> None:
    command.add_argument("indexes", nargs="+", type=path, metavar="INDEX", help=_CREATED)
    command.add_argument("--out", type=nonempty, required=True, metavar="NEW", help="the merged index's folder or URL")


def add_search(command: Parser) -> None:
    command.add_argument("index", type=path, metavar="INDEX", help=_CREATED)
    command.add_argument("text", nargs="?", type=nonempty, metavar="TEXT", help="what the pictures show, in quotes")
    group = command.add_argument_group("search")
    group.add_argument("--image", type=nonempty, metavar="FILE", help="find pictures similar to this one")
    group.add_argument("-n", "--count", type=whole(1, 100_000), default=10, metavar="N", help="number of results")
    rerank = "reorder the N best by the matching head's score: slower, more accurate (default: 0, off)"
    group.add_argument("--rerank", type=whole(0, 10_000), default=0, metavar="N", help=rerank)
    group.add_argument("--exact", action="store_true", help="score every picture instead of a shortlist")
    group = command.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON object a line")


def add_duplicates(command: Parser) -> None:
    command.add_argument("index", type=path, metavar="INDEX", help=_CREATED)
    similarity = "minimum similarity of two pictures; 1 is identical (default: 0.96)"
    command.add_argument("--alike", type=float, default=0.96, metavar="X", help=similarity)
    command.add_argument("--json", action="store_true", help="print one JSON object a group")


COMMANDS: dict[str, tuple[str, Callable[[Parser], None]]] = {  # command -> what it does, what adds its flags
    "index": ("embed a folder of pictures, for search", add_index),
    "merge": ("merge indexes into one", add_merge),
    "search": ("find pictures of an index by a text or a picture", add_search),
    "duplicates": ("find near duplicates in an index", add_duplicates),
}
