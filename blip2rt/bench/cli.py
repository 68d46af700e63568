"""The command `blip2rt-bench`. Results go to standard output, everything else to standard error.

Exit status: 0 on success, 2 for an error (one line), 130 if interrupted, 143 on SIGTERM.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .. import backends
from ..backends.ort import num_threads, usable_threads
from ..bundle import read
from ..bundle.atomic import write_file
from ..bundle.location import locate
from ..command_line import Parser, nonempty, run, whole
from ..errors import OptionError
from . import collect, geometry, machine, report
from .stages import Workload

_EPILOG = f"""\
geometries: {", ".join(geometry.GEOMETRIES)}. A bundle of random weights is exported once (this
needs the extra `export`) and kept in --cache; nano is the embedded model.
peers: {", ".join(collect.PEERS)}. Each runs alone in its own process, on random
weights of the same geometry.

examples:
  blip2rt-bench
  blip2rt-bench --geometry blip2-opt-2.7b --peer hf-fp32 --peer hf-bf16 --json opt.json
  blip2rt-bench --model opt --threads 2 --json -
"""


def main(arguments: list[str] | None = None) -> int:
    """Run `blip2rt-bench` with `arguments`, or the process's own; return the exit code."""
    return run("blip2rt-bench", lambda: _run(_parser().parse_args(arguments)))


def _parser() -> Parser:
    about = "Measure a bundle on this machine, next to a linear read of its weights and to other engines."
    parser = Parser(description=about, epilog=_EPILOG)
    group = parser.add_argument_group("what to measure")
    source = group.add_mutually_exclusive_group()
    source.add_argument("--model", type=nonempty, metavar="BUNDLE", help="a bundle's folder (default: nano)")
    random = "a bundle of random weights, see below"
    source.add_argument("--geometry", choices=geometry.GEOMETRIES, metavar="NAME", help=random)
    precision = f"precisions of a geometry (default: {geometry.PRECISION})"
    group.add_argument("--precision", type=nonempty, metavar="GROUP=P,...", help=precision)
    runs = "what runs the model (default: the fastest on this CPU); trt is for NVIDIA GPUs"
    group.add_argument("--backend", choices=backends.names(), default=backends.DEFAULT, help=runs)
    cache = "folder for bundles of random weights (default: $BLIP2RT_CACHE, or ~/.cache/blip2rt)"
    group.add_argument("--cache", type=nonempty, metavar="FOLDER", help=cache)
    peer = "also measure this engine, with --geometry; may be repeated"
    group.add_argument("--peer", action="append", choices=list(collect.PEERS), default=[], metavar="NAME", help=peer)
    group = parser.add_argument_group("workload")
    group.add_argument("--image", type=nonempty, metavar="FILE", help="image to caption (default: a synthetic one)")
    group.add_argument("--batch", type=whole(1, 64), default=1, metavar="N", help="images in one call")
    group.add_argument("--beams", type=whole(1, 100), default=1, metavar="N", help="beam width; 1 is greedy")
    group.add_argument("--new-tokens", type=whole(1, 1000), default=20, metavar="N", help="tokens of every caption")
    threads = "threads of every operator (default: $BLIP2RT_NUM_THREADS, or every core)"
    group.add_argument("--threads", type=whole(1, 1024), metavar="N", help=threads)
    group.add_argument("--repeat", type=whole(1, 10000), default=10, metavar="N", help="runs of each stage")
    group.add_argument("--growth", action="store_true", help="also measure how times grow: rows, positions, images")
    group = parser.add_argument_group("output")
    json_help = "write all results; - writes them as the last line of standard output"
    group.add_argument("--json", type=nonempty, metavar="FILE", help=json_help)
    return parser


def _run(args: argparse.Namespace) -> int:
    _check(args)
    for peer in args.peer:
        if reason := collect.absent(peer):
            print(f"{peer} is not measured: {reason}", file=sys.stderr)
    signal.signal(signal.SIGTERM, _exit)
    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="blip2rt-bench-", ignore_cleanup_errors=True) as folder:
        os.environ["TMPDIR"] = folder  # for child processes, which may be killed
        try:
            result = collect.collect(_plan(args, Path(folder)))
        finally:
            if before is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = before
    report.show(result, sys.stdout)
    if args.json is not None:
        _write(args.json, json.dumps(result, indent=None if args.json == "-" else 2) + "\n")
    return 0


def _exit(number: int, frame: object) -> None:
    """Exit on a signal, leaving every `with` block, which removes files and ends child processes."""
    signal.signal(number, signal.SIG_IGN)  # `timeout` sends it twice
    sys.exit(128 + number)


def _write(given: str, content: str) -> None:
    """Write the JSON to a file, or to standard output for -. Raises OptionError."""
    if given == "-":
        print(content, end="", flush=True)
        return
    try:
        write_file(Path(given), content.encode())
    except OSError as error:
        raise OptionError(f"--json {given}: {error.strerror or error}") from error


def _check(args: argparse.Namespace) -> None:
    """Check the flags before minutes of measuring. Raises OptionError with all faults at once."""
    faults = list(_output_faults(args))
    if args.peer and args.geometry in (None, geometry.NANO):
        faults.append("--peer needs a model that transformers supports: give --geometry, but not nano")
    if collect.LLAMA in args.peer and args.geometry is not None and "t5" in args.geometry:
        faults.append(f"llama.cpp has no decoder like that of {args.geometry}: give a --geometry with OPT")
    if args.precision is not None and args.geometry in (None, geometry.NANO):
        faults.append("--precision applies to a bundle of random weights: give --geometry, but not nano")
    if args.image is not None and Path(args.image).is_dir():
        faults.append(f"--image {args.image} is a folder: name a file")
    elif args.image is not None and not Path(args.image).is_file():
        faults.append(f"--image: no such file: {args.image!r}")
    if faults:
        raise OptionError("; ".join(faults))


def _output_faults(args: argparse.Namespace) -> Iterator[str]:
    if args.json in (None, "-"):
        return
    if not Path(args.json).resolve().parent.is_dir():
        yield f"--json {args.json}: folder {Path(args.json).resolve().parent} does not exist: give another path"
    elif Path(args.json).is_dir():
        yield f"--json {args.json} is a folder: name a file"


def _plan(args: argparse.Namespace, folder: Path) -> collect.Plan:
    threads = usable_threads(args.threads or num_threads() or machine.cores())
    cache = geometry.cache_folder(args.cache)
    if args.geometry is not None:
        precision = geometry.PRECISION if args.precision is None else args.precision
        bundle = geometry.bundle(args.geometry, precision, cache)
    else:
        bundle = Path(locate(args.model))
    _check_bundle(bundle, args)
    image = str(picture(folder / "photograph.jpg")) if args.image is None else args.image
    work = Workload(str(bundle), image, args.batch, args.beams, args.new_tokens, threads, args.repeat, args.backend)
    measured = any(collect.absent(peer) is None for peer in args.peer)
    config = str(geometry.config(args.geometry, cache)) if measured else None
    return collect.Plan(work, args.geometry, tuple(dict.fromkeys(args.peer)), config, cache, args.growth)


def _check_bundle(path: Path, args: argparse.Namespace) -> None:
    """Check that a bundle captions and supports the number of tokens. Raises Blip2rtError."""
    from ..image import prepare

    manifest = read(path).manifest
    if manifest.llm is None:
        raise OptionError(f"{path} cannot caption: give a bundle with a language model")
    room = manifest.llm.max_positions - (1 if manifest.llm.encoder_decoder else manifest.llm.prefix_length + 8)
    if args.new_tokens > room:
        raise OptionError(f"--new-tokens is {args.new_tokens}, but this model supports at most {room}: give fewer")
    if args.image is not None:
        prepare(args.image, manifest.image)


def picture(path: Path, width: int = 1000, height: int = 750) -> Path:
    """Write a JPEG of smooth colours with noise; its file is about as large as a photograph's."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(colours.resize((width, height), Image.Resampling.BICUBIC))
    noisy = smooth + rng.normal(0, 4, (height, width, 3))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, "JPEG", quality=90)
    return path
