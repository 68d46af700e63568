"""`blip2rt caption`, `index`, `search` and `duplicates`: flags in, calls, print."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..command_line import complain
from ..errors import OptionError, one_line
from ..install_hints import pip_install
from . import flags
from .indexing import BATCH, sources_of, update
from .outputs import check_empty
from .progress import say, summary
from .walk import more_than

if TYPE_CHECKING:
    from ..model import Model
    from .index import Index

Load = Callable[[int | None], "Model"]  # of the threads that an operator may use


def caption(args: argparse.Namespace, load: Load, options: Mapping[str, Any]) -> int:
    """`blip2rt caption` with its flags."""
    from . import captions

    sources = flags.sources_of(args)
    beside = args.caption_extension or (".txt" if args.write else None)
    outputs = captions.Outputs(beside, args.xmp, args.out, args.overwrite, args.json)
    around = captions.Wording(args.prefix, args.suffix, args.template)
    care = captions.Care(args.errors, args.strict)
    captions.check(outputs, sources, care)
    options = dict(options)
    words = captions.Words(options.pop("prompt", args.prompt), args.ask, options, around)
    pace = flags.pace_of(args, sources, captions.BATCH)
    return captions.caption(load(pace.threads), sources, words, outputs, care, pace)


def index(args: argparse.Namespace, load: Load) -> int:
    """Embed a folder. Return the exit code of Counts."""
    from .index import EXACT, Index
    from .vectors import has_usearch

    clip = args.format == "clip-retrieval"
    if clip:
        from . import clip_retrieval

        clip_retrieval.arrow()
        if not (args.out / "blip2rt" / "index.json").exists():
            check_empty(args.out, "no index, and not empty: give another --out", "blip2rt")
    folder = args.out / "blip2rt" if clip else args.out
    sources = sources_of(args.folder)
    if not has_usearch() and more_than(EXACT, sources):
        say(f"search scores all of more than {EXACT:,} pictures without usearch: {pip_install('gallery')}")
    pace = flags.pace_of(args, sources, BATCH)
    with Index.create(folder, args.folder, load(pace.threads)) as opened:
        try:
            counts = update(opened, pace, args.errors, args.strict, quiet=False)
        except KeyboardInterrupt:
            say(f"{len(opened):,} pictures are in the index; the same command goes on")
            raise
        if clip:
            clip_retrieval.export(opened, args.out)
        summary(counts, "indexed", args.errors, say)
    return counts.code


def search(args: argparse.Namespace, load: Load) -> int:
    """Print what fits a text or a picture. Return 1 where some could not be copied, or their folder is not there."""
    from . import results
    from .index import Index

    if (args.text is None) == (args.image is None):
        raise OptionError("search takes one thing: give TEXT, or --image FILE")
    query = args.text if args.image is None else args.image
    results.check(args.html, args.copy_to)
    with Index.open(args.index, load(args.threads)) as opened:
        hits = opened.search(query, args.count, image=args.image is not None, rerank=args.rerank, exact=args.exact)
        failed = _lost(opened)
    print(results.lines(hits, args.json), end="")
    if args.html is not None:
        results.write_page(hits, str(query), args.html)
    if args.copy_to is not None:
        failed += results.copy(hits, args.copy_to)
    return _said(failed)


def _lost(index: Index) -> list[str]:
    """What is wrong with the index's folder, if anything."""
    if index.root.is_dir():
        return []
    fix = f"`blip2rt index DIR --out {index.path}` points to its new place"
    return [f"{index.root}, the folder of {index.path}, is not there: {fix}"]


def _said(failed: list[str]) -> int:
    """Say what failed, a line each; return the exit code."""
    for why in failed:
        complain("blip2rt", why)
    return 1 if failed else 0


def duplicates(args: argparse.Namespace, load: Load) -> int:
    """Print groups of near-copies, a path a line and an empty line after each group. Return as `search` does."""
    from .copies import near_copies
    from .index import Index

    if not 0 < args.alike <= 1:
        raise OptionError(f"--alike is {args.alike}: give a number above 0, 1 at most")
    with Index.open(args.index, load(args.threads)) as opened:
        groups, failed = near_copies(opened, args.alike), _lost(opened)
        for group in groups:
            paths = [str(opened.root / file.path) for file in group]
            if args.json:
                print(json.dumps({"images": paths}, ensure_ascii=False))
            else:
                print("".join(f"{one_line(path)}\n" for path in paths))
    if not args.json and sys.stderr.isatty():
        say(f"{len(groups):,} groups")
    return _said(failed)
