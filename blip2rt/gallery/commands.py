"""The commands `blip2rt caption`, `index`, `search` and `duplicates`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..command_line import complain, show, show_json
from ..errors import OptionError, check_probability, one_line, utf8_name
from ..install_hints import pip_install
from ..options import given_in
from . import flags
from .output_files import check_empty
from .progress import print_status, summary
from .walk import has_more_than

if TYPE_CHECKING:
    from ..model import Model
    from .captions import Job
    from .index import Index
    from .prefetch import Executor


@dataclass(frozen=True)
class Resources:
    """What the commands open once their arguments are checked."""

    load: Callable[[int | None], Model]  # argument: threads of an operator
    open_executor: Callable[[], AbstractContextManager[Executor | None]] = nullcontext


def caption(args: argparse.Namespace, resources: Resources) -> int:
    """Caption pictures and return the exit code."""
    from . import captions
    from .outputs.templates import CaptionTemplate

    job = _job(args, captions.BATCH_SIZE)
    if args.min_confidence is not None:
        check_probability(args.min_confidence, "--min-confidence")
        if args.ask is not None:
            raise OptionError("--min-confidence is of captions, but --ask writes answers: leave out one of them")
    if args.pool is not None and args.ask is not None:
        raise OptionError("--pool guides captions, but --ask writes answers: leave out one of them")
    template = CaptionTemplate(args.prefix, args.suffix, args.template)
    hedge = args.min_confidence, args.unsure
    texts = captions.TextSettings(args.prompt, args.ask, given_in(args), template, *hedge, args.pool)
    model = resources.load(job.parallelism.threads)
    with resources.open_executor() as executor:
        return captions.caption(model, job, texts, executor)


def tag(args: argparse.Namespace, resources: Resources) -> int:
    """Label pictures and return the exit code."""
    from ..matching.tagger import read_labels
    from . import tags

    job = _job(args, tags.BATCH_SIZE)
    labels = None if args.labels is None else read_labels(args.labels)
    settings = tags.TagSettings(labels, args.labels, args.top, args.threshold)
    return tags.tag(resources.load(job.parallelism.threads), job, settings)


def _job(args: argparse.Namespace, batch_size: int) -> Job:
    """The pictures and outputs of `caption` and `tag`. Raises OptionError for conflicting outputs."""
    from .captions import Job
    from .outputs.settings import OutputSettings, check_outputs

    sidecar = args.caption_extension or (".txt" if args.write else None)
    xmp = args.xmp_name or (flags.XMP_NAMES[0] if args.xmp else None)
    sources = flags.sources_of(args)
    outputs = OutputSettings(sidecar, xmp, args.out, args.overwrite, args.json, args.errors, args.strict)
    check_outputs(outputs, sources)
    return Job(sources, outputs, flags.parallelism_of(args, sources, batch_size))


def index(args: argparse.Namespace, resources: Resources) -> int:
    """Create or update an index and return the exit code."""
    from .index import MAX_EXACT, Index
    from .index_update import BATCH_SIZE, index_sources, update

    sources = index_sources(args.folder)
    _suggest_usearch(lambda: has_more_than(MAX_EXACT, sources))
    parallelism = flags.parallelism_of(args, sources, BATCH_SIZE)
    model = resources.load(parallelism.threads)
    with Index.create(args.out, args.folder, model) as opened, resources.open_executor() as executor:
        try:
            counts = update(opened, parallelism, args.errors, args.strict, quiet=False, executor=executor)
        except KeyboardInterrupt:
            print_status(f"{len(opened):,} pictures are in the index; the same command resumes")
            raise
        print_status(summary(counts, "indexed", args.errors))
    return counts.exit_code


def _suggest_usearch(is_large: Callable[[], bool]) -> None:
    from .index import MAX_EXACT
    from .vectors import has_usearch

    if not has_usearch() and is_large():
        fix = f"install usearch for a faster search: {pip_install('gallery')}"
        print_status(f"more than {MAX_EXACT:,} pictures, each of which is scored in every search; {fix}")


def merge(args: argparse.Namespace, resources: Resources) -> int:
    """Merge indexes into one and return the exit code."""
    from .index import MAX_EXACT, Index
    from .merge import merge

    check_empty(args.out, "not empty: give another --out")
    model = resources.load(args.threads)
    with ExitStack() as stack:
        parts = [stack.enter_context(Index.open(path, model)) for path in args.indexes]
        _suggest_usearch(lambda: sum(map(len, parts)) > MAX_EXACT)
        count = merge(parts, args.out, args.captions, print_status)
    print_status(f"{count:,} pictures in {args.out}")
    return 0


def search(args: argparse.Namespace, resources: Resources) -> int:
    """Print the pictures that match a text or a picture. Return 1 if some, or their folder, are missing."""
    from . import search_output
    from .index import Index

    if (args.text is None) == (args.image is None):
        raise OptionError("search takes one query: give TEXT, or --image FILE")
    query = args.text if args.image is None else args.image
    if args.copy_to is not None:
        check_empty(args.copy_to, "not empty: give another --copy-to")
    with Index.open(args.index, resources.load(args.threads)) as opened:
        hits = opened.search(query, args.count, image=args.image is not None, rerank=args.rerank, exact=args.exact)
        problems = _missing_root(opened)
    show(search_output.format_hits(hits, args.json), end="")
    if args.copy_to is not None:
        problems += search_output.copy_hits(hits, args.copy_to)
    return _report(problems)


def _missing_root(index: Index) -> list[str]:
    if index.root.exists():
        return []
    fix = f"`blip2rt index DIR --out {index.path}` sets its new path"
    return [f"{index.root}, the folder of {index.path}, does not exist: {fix}"]


def _report(problems: list[str]) -> int:
    """Print one line per problem and return the exit code."""
    for problem in problems:
        complain("blip2rt", problem)
    return 1 if problems else 0


def duplicates(args: argparse.Namespace, resources: Resources) -> int:
    """Print groups of near duplicates: one path a line, and an empty line after each group."""
    from .index import Index
    from .near_duplicates import find_near_duplicates

    if not 0 < args.alike <= 1:
        raise OptionError(f"--alike is {args.alike}: give a number above 0 and up to 1")
    with Index.open(args.index, resources.load(args.threads)) as opened:
        groups, problems = find_near_duplicates(opened, args.alike), _missing_root(opened)
        for group in groups:
            paths = [str(opened.root / file.path) for file in group]
            if args.json:
                show_json({"images": [*map(utf8_name, paths)]})
            else:
                print("".join(f"{one_line(path)}\n" for path in paths))
    if not args.json and sys.stderr.isatty():
        print_status(f"{len(groups):,} groups")
    return _report(problems)
