"""The flags of the gallery's commands, and what they mean. Imports little: every call of `blip2rt` reads them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..command_line import Parser, nonempty, path, whole

if TYPE_CHECKING:
    from .ahead import Pace
    from .pictures import Sources

# Names that kohya's scripts have for the same.
KOHYA = {"--postfix": "--suffix", "--caption-extention": "--caption-extension", "--max-length": "--max-new-tokens",
         "--min-length": "--min-new-tokens", "--max-data-loader-n-workers": "--workers"}  # fmt: skip

FLAGS = {name: "--" + name.replace("_", "-") for name in ("template", "overwrite", "out", "caption_extension")}


def add_sources(command: Parser, what: str) -> None:
    """Pictures, one way or another."""
    command.add_argument("images", nargs="*", type=nonempty, metavar="PATH", help=what)
    group = command.add_argument_group("pictures")
    group.add_argument("-r", "--recursive", action="store_true", help="take the folders in a folder, too")
    group.add_argument("--from-file", type=nonempty, action="append", default=[], metavar="FILE",
                       help="take the paths in FILE, one a line or between null characters; - is standard input; may "
                       "be given several times")  # fmt: skip


def add_pace(group: argparse._ArgumentGroup, batch: int) -> None:
    group.add_argument("--batch-size", type=whole(1, 1024), metavar="N",
                       help="pictures that go through the graphs together; on a CPU two such batches share --threads "
                       f"(default: {batch})")  # fmt: skip
    group.add_argument("--workers", type=whole(1, 256), metavar="N",
                       help="threads that decode ahead of the graphs (default: a core each, 8 at most)")  # fmt: skip


def add_care(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--errors", type=nonempty, metavar="FILE",
                       help="list what failed in FILE: path<TAB>why a line, or JSON lines in a FILE.jsonl")  # fmt: skip
    group.add_argument("--strict", action="store_true", help="stop at the first picture that fails")


def add_outputs(command: Parser) -> None:
    """Where captions go, and the words around them."""
    group = command.add_argument_group("files (what is done already is skipped)")
    group.add_argument("--write", choices=("txt",), help="write photo.txt beside photo.jpg")
    group.add_argument("--caption-extension", type=nonempty, metavar="EXT",
                       help="write photo.EXT instead, as .caption")  # fmt: skip
    group.add_argument("--xmp", action="store_true", help="write the description into photo.xmp; other fields stay")
    group.add_argument("--out", type=nonempty, metavar="FILE",
                       help="write one FILE, .jsonl, .csv or .parquet; of shards (.tar) a folder of captioned "
                       "ones")  # fmt: skip
    group.add_argument("--overwrite", action="store_true", help="do again what is done")
    add_care(group)
    group = command.add_argument_group("words")
    group.add_argument("--ask", type=nonempty, metavar="QUESTION", help="give the answers to a question, not captions")
    group.add_argument("--prefix", default="", metavar="TEXT", help="put TEXT before each caption")
    group.add_argument("--suffix", default="", metavar="TEXT", help="put TEXT after each caption")
    group.add_argument("--template", default="{caption}", metavar="TEXT",
                       help="a text around it, of {caption}, {stem}, {name} and {folder}")  # fmt: skip
    add_pace(command.add_argument_group("pace"), 16)


def writes(args: argparse.Namespace) -> bool:
    """Whether captions go to files."""
    return bool(args.write or args.caption_extension or args.xmp or args.out)


def sources_of(args: argparse.Namespace) -> Sources:
    from ..errors import OptionError
    from .pictures import Sources

    if not args.images and not args.from_file:
        raise OptionError(f"no pictures: give PATH or --from-file (see blip2rt {args.command} --help)")
    if [*args.images, *args.from_file].count("-") > 1:
        raise OptionError("- is given twice, and standard input can be read once: give it once")
    return Sources(tuple(args.images), tuple(args.from_file), args.recursive)


def pace_of(args: argparse.Namespace, sources: Sources, batch: int) -> Pace:
    """Two lanes that share --threads, where there are two threads on a CPU, and pictures for two batches."""
    from .ahead import Pace

    batch, workers = args.batch_size or batch, args.workers or min(8, max(2, os.cpu_count() or 1))
    threads = args.threads
    if args.backend == "ort":
        from ..backends.ort import num_threads
        from .lanes import cores
        from .walk import more_than

        threads = (num_threads() or cores()) if threads is None else threads
        if 2 <= threads <= 1024 and more_than(2 * batch - 1, sources):
            return Pace(batch, workers, 2, threads // 2)
    return Pace(batch, workers, 1, args.threads)


Work = Callable[[argparse.Namespace], int]


def add_commands(add: Callable[..., Parser], index: Work, search: Work, duplicates: Work, model: Any) -> None:
    """`index`, `search` and `duplicates`. add: how a command is made; model: what adds the flags of the model."""
    command = add("index", index, "embed a folder of pictures, for search")
    command.add_argument("folder", type=path, metavar="DIR", help="the folder; its folders are taken, too")
    group = command.add_argument_group("files (what is done already is skipped)")
    group.add_argument("--out", type=path, required=True, metavar="INDEX", help="the index, a folder")
    group.add_argument("--format", choices=("blip2rt", "clip-retrieval"), default="blip2rt",
                       help="clip-retrieval adds img_emb/*.npy and metadata/*.parquet of one vector each")  # fmt: skip
    add_care(group)
    add_pace(command.add_argument_group("pace"), 8)
    model(command)

    command = add("search", search, "find the pictures of an index that fit a text or a picture")
    command.add_argument("index", type=path, metavar="INDEX", help="what `blip2rt index` made")
    command.add_argument("text", nargs="?", type=nonempty, metavar="TEXT", help="what the pictures show, in quotes")
    group = command.add_argument_group("search")
    group.add_argument("--image", type=nonempty, metavar="FILE", help="find pictures like this one")
    group.add_argument("-n", "--count", type=whole(1, 100_000), default=10, metavar="N", help="pictures to find")
    group.add_argument("--rerank", type=whole(0, 10_000), default=0, metavar="N",
                       help="order the N best as match scores them: slower, better (default: 0, off)")  # fmt: skip
    group.add_argument("--exact", action="store_true", help="score every picture, without a shortlist")
    group = command.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON object a line")
    group.add_argument("--html", type=path, metavar="FILE", help="write a page with thumbnails")
    group.add_argument("--copy-to", type=path, metavar="DIR", help="copy the pictures into DIR, by rank")
    model(command)

    command = add("duplicates", duplicates, "group the near-copies of an index")
    command.add_argument("index", type=path, metavar="INDEX", help="what `blip2rt index` made")
    command.add_argument("--alike", type=float, default=0.96, metavar="X",
                         help="how like two pictures are, at least; 1 is the same")  # fmt: skip
    command.add_argument("--json", action="store_true", help="print one JSON object a group")
    model(command)
