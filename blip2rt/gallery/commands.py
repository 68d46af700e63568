"""The commands `blip2rt caption`, `tag`, `index`, `merge`, `search` and `duplicates`."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ..command_line import complain, show
from ..errors import OptionError, check_probability, one_line, utf8_name
from ..install_hints import pip_install
from ..object_storage import is_url, local_output
from ..options import given_in
from . import flags
from .output_files import check_empty
from .progress import print_status, summary
from .walk import has_more_than

if TYPE_CHECKING:
    from ..model import Model
    from .captions import Job
    from .index import Hit, Index
    from .prefetch import Executor


Load = Callable[[int | None], "Model"]  # argument: threads of an operator
Open = Callable[[], AbstractContextManager["Executor | None"]]  # what runs the graphs, instead of this process


def caption(args: argparse.Namespace, load: Load, open_executor: Open) -> int:
    """Caption pictures and return the exit code."""
    from . import captions

    job = _job(args, captions.BATCH_SIZE)
    if args.min_confidence is not None:
        check_probability(args.min_confidence, "--min-confidence")
        if args.ask is not None:
            raise OptionError("--min-confidence is of captions, but --ask writes answers: leave out one of them")
    if args.pool is not None and args.ask is not None:
        raise OptionError("--pool guides captions, but --ask writes answers: leave out one of them")
    hedge = args.min_confidence, args.unsure
    texts = captions.TextSettings(args.prompt, args.ask, given_in(args), args.template, *hedge, args.pool)
    model = load(job.parallelism.threads)
    with open_executor() as executor:
        return captions.caption(model, job, texts, executor)


def tag(args: argparse.Namespace, load: Load, _: Open) -> int:
    """Label pictures and return the exit code."""
    from ..matching.labels import read_labels
    from . import tags

    job = _job(args, tags.BATCH_SIZE)
    labels = None if args.labels is None else read_labels(args.labels)
    settings = tags.TagSettings(labels, args.labels, args.top, args.threshold)
    return tags.tag(load(job.parallelism.threads), job, settings)


def _job(args: argparse.Namespace, batch_size: int) -> Job:
    """The pictures and outputs of `caption` and `tag`. Raises OptionError for conflicting outputs."""
    from .captions import Job
    from .outputs.settings import OutputSettings, check_outputs

    xmp = args.xmp_name or (flags.XMP_NAMES[0] if args.xmp else None)
    sources = flags.sources_of(args)
    outputs = OutputSettings(args.write, xmp, args.out, args.overwrite, args.json, args.errors, args.strict)
    check_outputs(outputs, sources)
    return Job(sources, outputs, flags.parallelism_of(args, sources, batch_size))


def index(args: argparse.Namespace, load: Load, open_executor: Open) -> int:
    """Create or update an index and return the exit code."""
    from .index import MAX_EXACT, Index
    from .index_manifest import FILE_NAME
    from .index_update import BATCH_SIZE, index_sources, update

    sources = index_sources(args.folder)
    _suggest_usearch(lambda: not is_url(args.folder) and has_more_than(MAX_EXACT, sources))
    parallelism = flags.parallelism_of(args, sources, BATCH_SIZE)
    model = load(parallelism.threads)
    with open_executor() as executor, local_output(args.out, f"/{FILE_NAME}") as out:
        is_new = not Path(out, FILE_NAME).exists()
        with Index.create(out, args.folder, model) as opened:
            try:
                counts = update(opened, parallelism, args.errors, args.strict, quiet=False, executor=executor)
            except KeyboardInterrupt:
                print_status(f"{len(opened):,} pictures are in the index; the same command resumes")
                raise
        if is_new and counts.exit_code == 2 and Path(out).resolve() not in Path(args.errors or "").resolve().parents:
            shutil.rmtree(out, ignore_errors=True)
    print_status(summary(counts, "indexed", args.errors))
    return counts.exit_code


def _suggest_usearch(is_large: Callable[[], bool]) -> None:
    from .index import MAX_EXACT
    from .vectors import has_usearch

    if not has_usearch() and is_large():
        fix = f"install usearch for a faster search: {pip_install('gallery')}"
        print_status(f"more than {MAX_EXACT:,} pictures, each of which is scored in every search; {fix}")


def merge(args: argparse.Namespace, load: Load, _: Open) -> int:
    """Merge indexes into one and return the exit code."""
    from .index import MAX_EXACT, Index
    from .index_manifest import FILE_NAME
    from .merge import merge

    with local_output(args.out, f"/{FILE_NAME}") as name, ExitStack() as stack:
        check_empty(out := Path(name), "not empty: give another --out")
        model = load(args.threads)
        parts = [stack.enter_context(Index.open(path, model)) for path in args.indexes]
        _suggest_usearch(lambda: sum(map(len, parts)) > MAX_EXACT)
        count = merge(parts, out, print_status)
    print_status(f"{count:,} pictures in {args.out}")
    return 0


def search(args: argparse.Namespace, load: Load, _: Open) -> int:
    """Print the pictures that match a text or a picture. Return 1 if some, or their folder, are missing."""
    from .index import Index

    if (args.text is None) == (args.image is None):
        raise OptionError("search takes one query: give TEXT, or --image FILE")
    query = args.text if args.image is None else args.image
    with Index.open(args.index, load(args.threads)) as opened:
        if opened.scores_all and not args.exact:
            print_status("no shortlist of this machine, so every picture is scored: `blip2rt index` builds one")
        hits = opened.search(query, args.count, image=args.image is not None, rerank=args.rerank, exact=args.exact)
        problems = _missing_root(opened)
    show(_format_hits(hits, args.json), end="")
    return _report(problems)


def duplicates(args: argparse.Namespace, load: Load, _: Open) -> int:
    """Print groups of near duplicates: one path a line, and an empty line after each group."""
    from .index import Index
    from .near_duplicates import find_near_duplicates
    from .outputs.tables import json_line

    if not 0 < args.alike <= 1:
        raise OptionError(f"--alike is {args.alike}: give a number above 0 and up to 1")
    with Index.open(args.index, load(args.threads)) as opened:
        groups, problems = find_near_duplicates(opened, args.alike), _missing_root(opened)
        for group in groups:
            paths = [str(opened.root / file.path) for file in group]
            listed = json_line({"images": [*map(utf8_name, paths)]}).decode() if args.json else ""
            show(listed or "".join(f"{one_line(path)}\n" for path in [*paths, ""]), end="")
    return _report(problems)


def _format_hits(hits: Sequence[Hit], as_json: bool) -> str:
    """Return score<TAB>path lines or JSON lines. Cosines after scores of the matching head are marked."""
    from .outputs.tables import json_line

    if not as_json:
        shown = (_score(hit, hits[0].probability is not None) for hit in hits)
        return "".join(f"{score}\t{one_line(str(hit.path))}\n" for score, hit in zip(shown, hits, strict=True))
    found = []
    for hit in hits:
        row: dict[str, object] = {"image": utf8_name(str(hit.path)), "score": round(hit.score, 6)}
        if hit.probability is not None:
            row["probability"] = round(hit.probability, 6)
        found.append(json_line(row).decode())
    return "".join(found)


def _score(hit: Hit, reranked: bool) -> str:
    """reranked: whether the first hits have scores of the matching head."""
    return f"{hit.score:.3f}" + (" cosine" if reranked and hit.probability is None else "")


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
