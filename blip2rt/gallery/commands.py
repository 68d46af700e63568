"""The commands `blip2rt caption`, `index`, `search` and `duplicates`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

from ..command_line import complain, show, show_json
from ..errors import OptionError, check_probability, one_line, utf8_name
from ..install_hints import pip_install
from . import flags
from .path_checks import check_empty
from .progress import print_status, summary
from .walk import has_more_than

if TYPE_CHECKING:
    from ..model import Model
    from . import captions
    from .index import Index
    from .prefetch import Executor

Load = Callable[[int | None], "Model"]  # argument: threads of an operator
OpenExecutor = Callable[[], "AbstractContextManager[Executor | None]"]  # called once the arguments are checked


def caption(
    args: argparse.Namespace, load: Load, options: Mapping[str, Any], open_executor: OpenExecutor = nullcontext
) -> int:
    """Caption pictures and return the exit code."""
    from . import captions
    from .outputs.templates import CaptionTemplate

    sources = flags.sources_of(args)
    outputs = _outputs(args)
    captions.check_outputs(outputs, sources)
    options = dict(options)
    prompt, template = options.pop("prompt", args.prompt), CaptionTemplate(args.prefix, args.suffix, args.template)
    if args.min_confidence is not None:
        check_probability(args.min_confidence, "--min-confidence")
        if args.ask is not None:
            raise OptionError("--min-confidence is of captions, but --ask writes answers: leave out one of them")
    if args.pool is not None and args.ask is not None:
        raise OptionError("--pool guides captions, but --ask writes answers: leave out one of them")
    texts = captions.TextSettings(prompt, args.ask, options, template, args.min_confidence, args.unsure, args.pool)
    parallelism = flags.parallelism_of(args, sources, captions.BATCH_SIZE)
    model = load(parallelism.threads)
    with open_executor() as executor:
        return captions.caption(model, sources, texts, outputs, parallelism, executor)


def tag(args: argparse.Namespace, load: Load) -> int:
    """Label pictures and return the exit code."""
    from ..matching.tagger import read_labels
    from . import captions, tags

    sources = flags.sources_of(args)
    outputs = _outputs(args)
    captions.check_outputs(outputs, sources)
    labels = None if args.labels is None else read_labels(args.labels)
    settings = tags.TagSettings(labels, args.labels, args.top, args.threshold)
    parallelism = flags.parallelism_of(args, sources, tags.BATCH_SIZE)
    return tags.tag(load(parallelism.threads), sources, settings, outputs, parallelism)


def _outputs(args: argparse.Namespace) -> captions.OutputSettings:
    from .captions import OutputSettings

    sidecar = args.caption_extension or (".txt" if args.write else None)
    xmp = args.xmp_name or (flags.XMP_NAMES[0] if args.xmp else None)
    return OutputSettings(sidecar, xmp, args.out, args.overwrite, args.json, args.errors, args.strict)


def index(args: argparse.Namespace, load: Load, open_executor: OpenExecutor = nullcontext) -> int:
    """Create or update an index and return the exit code."""
    from .index import MAX_EXACT, Index
    from .index_update import BATCH_SIZE, index_sources, update

    for_clip_retrieval = args.format == "clip-retrieval"
    folder = args.out / "blip2rt" if for_clip_retrieval else args.out
    if for_clip_retrieval:
        from .outputs import clip_retrieval, tables

        tables.load_pyarrow()
        if not (folder / "index.json").exists():
            check_empty(args.out, "neither an index nor empty: give another --out", "blip2rt")
    sources = index_sources(args.folder)
    _suggest_usearch(lambda: has_more_than(MAX_EXACT, sources))
    parallelism = flags.parallelism_of(args, sources, BATCH_SIZE)
    with Index.create(folder, args.folder, load(parallelism.threads)) as opened, open_executor() as executor:
        try:
            counts = update(opened, parallelism, args.errors, args.strict, quiet=False, executor=executor)
        except KeyboardInterrupt:
            print_status(f"{len(opened):,} pictures are in the index; the same command resumes")
            raise
        if for_clip_retrieval:
            clip_retrieval.export(opened.catalog.all(), opened.vectors, opened.root, args.out)
        print_status(summary(counts, "indexed", args.errors))
    return counts.exit_code


def _suggest_usearch(is_large: Callable[[], bool]) -> None:
    from .index import MAX_EXACT
    from .vectors import has_usearch

    if not has_usearch() and is_large():
        fix = f"install usearch for a faster search: {pip_install('gallery')}"
        print_status(f"more than {MAX_EXACT:,} pictures, each of which is scored in every search; {fix}")


def merge(args: argparse.Namespace, load: Load) -> int:
    """Merge indexes into one and return the exit code."""
    from .index import MAX_EXACT, Index
    from .merge import merge

    check_empty(args.out, "not empty: give another --out")
    model = load(args.threads)
    with ExitStack() as stack:
        parts = [stack.enter_context(Index.open(path, model)) for path in args.indexes]
        _suggest_usearch(lambda: sum(map(len, parts)) > MAX_EXACT)
        count = merge(parts, args.out, args.captions, print_status)
    print_status(f"{count:,} pictures in {args.out}")
    return 0


def search(args: argparse.Namespace, load: Load) -> int:
    """Print the pictures that match a text or a picture. Return 1 if some, or their folder, are missing."""
    from . import search_output
    from .index import Index

    if (args.text is None) == (args.image is None):
        raise OptionError("search takes one query: give TEXT, or --image FILE")
    query = args.text if args.image is None else args.image
    search_output.check_targets(args.html, args.copy_to)
    with Index.open(args.index, load(args.threads)) as opened:
        hits = opened.search(query, args.count, image=args.image is not None, rerank=args.rerank, exact=args.exact)
        problems = _missing_root(opened)
    show(search_output.format_hits(hits, args.json), end="")
    if args.html is not None:
        search_output.write_html(hits, str(query), args.html)
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


def duplicates(args: argparse.Namespace, load: Load) -> int:
    """Print groups of near duplicates: one path a line, and an empty line after each group."""
    from .index import Index
    from .near_duplicates import find_near_duplicates

    if not 0 < args.alike <= 1:
        raise OptionError(f"--alike is {args.alike}: give a number above 0 and up to 1")
    with Index.open(args.index, load(args.threads)) as opened:
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
