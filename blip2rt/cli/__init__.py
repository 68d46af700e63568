"""The command `blip2rt`: parse, call one function, print. Results go to standard output, all else to standard error.

Exit status: 0 success, 1 some images failed, 2 a mistake in the input (one line says which), 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import backends
from ..command_line import collect_garbage, complain, flags_named, run, run_process, show, show_json
from ..errors import ImageError, OptionError, one_line, reason, utf8_name
from ..gallery import flags as gallery_flags
from ..native import require_processor
from ..options import given_in
from .parser import FLAGS, Handler, build_parser

if TYPE_CHECKING:
    from ..model import Model

_BATCH = 8  # images of `ask` in memory
_CACHE_BYTES = 64 << 20  # of requests; the confidence of a caption needs its image again
_SHOW_PROGRESS_BYTES = 200_000_000  # larger bundles get a progress line


def main(arguments: list[str] | None = None) -> int:
    """Run `blip2rt` with `arguments` and return the exit status, or with the process's own and end the process."""
    if arguments is None:
        run_process(lambda: main(sys.argv[1:]))
    return run("blip2rt", lambda: _call(build_parser(HANDLERS, arguments).parse_args(arguments)))


def _call(args: argparse.Namespace) -> int:
    require_processor()
    with flags_named(FLAGS):
        status: int = args.run(args)
    return status


def _caption(args: argparse.Namespace) -> int:
    """Describe pictures, on standard output or in files."""
    return _stream(args, args.prompt, args.ask) if args.stream else _gallery("caption", args)


def _ask(args: argparse.Namespace) -> int:
    """Answer a question about each image. A bad image does not stop the others."""
    if args.stream:
        return _stream(args, None, args.question)
    from ..results import too_late
    from .stdio import text_row

    options, model, failed = given_in(args), _load(args), 0
    for start in range(0, len(args.images), _BATCH):
        names = args.images[start : start + _BATCH]
        kept: dict[str, Any] = {**options, "keep_going": True, "on_timeout": None}  # errors and None take a place
        answers = model.ask([_image(name) for name in names], args.question, **kept)
        for name, answer in zip(names, answers, strict=True):
            if answer is None or isinstance(answer, ImageError):
                failed += 1
                late = too_late(options["max_time"]) if answer is None else None
                error = f"{one_line(name)}: {late}" if late else str(answer)
                if args.json:
                    _print_row({"image": utf8_name(name), "error": error})
                complain("blip2rt", error)
            elif args.json:
                _print_row(text_row(model, name, [answer], sum(answer.timings), args.question))
            else:
                show(answer if len(args.images) == 1 else f"{one_line(name)}\t{one_line(answer)}")
    return 2 if failed == len(args.images) else bool(failed)


def _stream(args: argparse.Namespace, prompt: str | None, question: str | None) -> int:
    """Print one text as it is decoded; with --json, its pieces and then the row that --json alone prints."""
    several = len(args.images) > 1
    if args.command == "caption":
        several = not gallery_flags.sources_of(args).single or gallery_flags.writes(args)
        if args.pool is not None:
            raise OptionError("--pool guides whole captions: leave out --stream, or the pool")
    if several:
        raise OptionError("--stream prints one text as it is decoded: give one image, and no output file")
    name, options = args.images[0], given_in(args)
    try:
        image, model = _image(name), _load(args, batching=args.json)
        if args.json:
            from .stdio import text_result

            def tell(piece: str) -> None:
                _print_row({"piece": piece})

            _print_row(text_result(model, image, utf8_name(name), prompt, question, options, tell))
        else:
            for piece in model.stream(image, prompt, question=question, **options):
                show(piece, end="", flush=True)
            print()
    except ImageError as error:
        if args.json:
            _print_row({"image": utf8_name(name), "error": str(error)})
        raise
    return 0


def _match(args: argparse.Namespace) -> int:
    """Print how well each text describes the image, best first."""
    from .stdio import match_rows

    for row in match_rows(_load(args), _image(args.image), args.texts):
        if args.json:
            _print_row({"image": utf8_name(args.image), **row})
            continue
        line = "score {score:6.2f}  probability {probability:.3f}  cosine {cosine:6.3f}".format(**row)
        line += "" if row["likelihood"] is None else f"  likelihood {row['likelihood']:6.2f}"
        print(line if len(args.texts) == 1 else f"{line}  {one_line(row['text'])}")
    return 0


def _fill(args: argparse.Namespace) -> int:
    """Print the JSON of each image. A bad image does not stop the others."""
    from ..structured import fill, read

    try:
        schema = json.loads(args.schema.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise OptionError(f"{one_line(str(args.schema))}: no JSON Schema can be read ({reason(error)})") from None
    read(schema)
    model, failed = _load(args), 0
    for name in args.images:
        try:
            _print_row(fill(model, _image(name), schema, args.question))
        except ImageError as error:
            failed += 1
            complain("blip2rt", str(error))
    return 2 if failed == len(args.images) else bool(failed)


def _gallery(name: str, args: argparse.Namespace) -> int:
    """Run `caption`, `tag`, `index`, `merge` or `search`."""
    from ..gallery import commands

    status: int = getattr(commands, name)(args, partial(_load, args), partial(_executor, args))
    return status


def _info(args: argparse.Namespace) -> int:
    from ..bundle import read
    from ..bundle.location import locate
    from .info import describe, to_dict

    bundle = read(locate(args.bundle))
    show_json(to_dict(bundle), indent=2) if args.json else print(describe(bundle))
    return 0


def _verify(args: argparse.Namespace) -> int:
    from ..bundle import verify
    from ..bundle.location import locate

    bundle = verify(locate(args.bundle), _progress("verifying", _SHOW_PROGRESS_BYTES))
    replace(bundle, trusted_graphs=args.trusted_graphs).check_parts()
    files = bundle.manifest.files or {}
    print(f"{one_line(str(bundle.path))}: {len(files)} files, {bundle.size / 1e6:.1f} MB, all as exported")
    return 0


def _pool(args: argparse.Namespace) -> int:
    """Embed the captions of a text file, for --pool."""
    from ..matching.pool import build_pool

    count = build_pool(args.file, args.out, _load(args).pipeline, _progress("embedding", 1000))
    print(f"{one_line(str(args.out))}: {count:,} captions")
    return 0


def _pull(args: argparse.Namespace) -> int:
    """Download a bundle from the hub, or its newest commit."""
    from ..bundle.hub import pull

    print(pull(args.bundle))
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from .doctor import examine, report, to_dict

    findings = examine()
    text, status = report(findings)
    print(json.dumps(to_dict(findings), indent=2, ensure_ascii=False) if args.json else text)
    return status


def _stdio(args: argparse.Namespace) -> int:
    """Answer the requests on standard input until it ends."""
    from .stdio import Session, read_lines

    if sys.stdin is None:
        raise OptionError("standard input is closed: send requests through a pipe")
    Session(_load(args, batching=True), _print_row, args.parallel).run(read_lines(sys.stdin.buffer))
    return 0


def _help(args: argparse.Namespace) -> int:
    """Print the help of a command, or of all."""
    build_parser(HANDLERS).parse_args([*([args.topic] if args.topic else []), "--help"])
    return 0


_OWN = (_caption, _ask, _match, _fill, _info, _verify, _pool, _pull, _doctor, _stdio, _help)
HANDLERS: dict[str, Handler] = {
    **{name: partial(_gallery, name) for name in ("tag", "index", "merge", "search", "duplicates")},
    **{handler.__name__[1:]: handler for handler in _OWN},
}


def _progress(work: str, least: int) -> Callable[[int, int], None] | None:
    """Return a function that shows progress on the terminal, if there is one, for totals above `least`."""
    if not sys.stderr.isatty():
        return None
    shown = -1

    def show(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // max(total, 1)
        if percent != shown and total > least:
            shown = percent
            print(f"\r{work} {percent:3d}%", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show


def _load(args: argparse.Namespace, threads: int | None = None, batching: bool = False) -> Model:
    """threads: overrides the flag. batching: see blip2rt.load."""
    import logging

    from ..loading import load, settings_in

    if logging.lastResort is not None:  # prints warnings on standard error
        logging.lastResort.setFormatter(logging.Formatter("blip2rt: %(message)s"))
    settings = settings_in(args) | ({} if threads is None else {"threads": threads})
    model = load(args.model, **settings, batching=batching, cache_bytes=_CACHE_BYTES if batching else 0)
    collect_garbage()
    return model


def _executor(args: argparse.Namespace) -> AbstractContextManager[Any]:
    """What runs the graphs: the workers of --ray, or nothing but this process."""
    if args.ray is None:
        return nullcontext()
    from ..integrations.ray_cluster import Workers
    from ..integrations.ray_executor import RayExecutor
    from ..loading import settings_in

    settings = settings_in(args)
    threads = settings.pop("threads") or 1
    gpus = float("cuda" in backends.get(args.backend).devices) if args.gpus is None else args.gpus
    return RayExecutor(Workers(args.ray, args.workers, threads, gpus), args.model, settings)


def _image(path: str) -> str | bytes:
    """The image at a path; `-` is standard input."""
    if path == "-" and sys.stdin is None:
        raise ImageError("- is standard input, which is closed: give a file, or send the image through a pipe")
    return sys.stdin.buffer.read() if path == "-" else path


def _print_row(row: dict[str, Any]) -> None:
    show_json(row, flush=True)
