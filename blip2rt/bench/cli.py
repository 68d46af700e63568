"""The command `blip2rt-bench`: parse, measure, print. Results on stdout, everything else on stderr.

Exit codes: 0 all went well, 2 a mistake in the input (one line says which), 130 interrupted, 143 ended by SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from ..backends.ort import num_threads
from ..bundle import embedded, read
from ..bundle.atomic import write_file
from ..command_line import Parser, nonempty, run, whole
from ..errors import OptionError
from ..install_hints import pip_install
from . import boards, collect, ending, geometry, machine, peers, report
from .stages import Work

_EPILOG = f"""\
geometries: {", ".join(geometry.GEOMETRIES)}. A bundle of random weights is made once, by the
exporter (the extra `export`), and kept in --cache; nano is the embedded model.
peers: {", ".join(peers.PEERS)}. Each runs alone, after the others have given back their
memory, on random weights of the same geometry, or on those of --checkpoint.

examples:
  blip2rt-bench
  blip2rt-bench --geometry blip2-opt-2.7b --peer hf-fp32 --peer hf-bf16 --json opt.json --plot opt.png
  blip2rt-bench --model opt --checkpoint Salesforce/blip2-opt-2.7b --peer hf-bf16 --json -
  blip2rt-bench --geometry blip2-opt-2.7b --roofline all
"""

_HUB_ID = r"(\w[\w.-]*/)?\w[\w.-]*"


def main(arguments: list[str] | None = None) -> int:
    """Run `blip2rt-bench` with `arguments`, or the process's own; return the exit code."""
    return run("blip2rt-bench", lambda: _run(_parser().parse_args(arguments)))


def _parser() -> Parser:
    parser = Parser(
        description="How fast a bundle is on this machine, how close to its limits, and against whom.",
        epilog=_EPILOG,
        renamed={
            "--num-beams": "--beams",
            "--max-new-tokens": "--new-tokens",
            "--ckpt": "--checkpoint",
            "--batch-size": "--batch",
        },
    )
    measured = parser.add_argument_group("what is measured")
    source = measured.add_mutually_exclusive_group()
    source.add_argument("--model", type=nonempty, metavar="BUNDLE",
                        help="a bundle's folder (default: the embedded model, nano)")  # fmt: skip
    source.add_argument("--geometry", choices=geometry.GEOMETRIES, metavar="NAME",
                        help="a bundle of random weights, see below")  # fmt: skip
    measured.add_argument("--precision", type=nonempty, metavar="GROUP=P,...",
                          help=f"precisions of a geometry's parts (default: {geometry.PRECISION}; with --roofline, "
                          f"whose graphs are of the target trt: {geometry.PRECISION_TRT})")  # fmt: skip
    measured.add_argument("--cache", type=nonempty, metavar="FOLDER",
                          help="where bundles of random weights are kept (default: $BLIP2RT_CACHE, or "
                          "~/.cache/blip2rt)")  # fmt: skip
    measured.add_argument("--peer", action="append", choices=list(peers.PEERS), default=[], metavar="NAME",
                          help="measure this one too; may be given several times")  # fmt: skip
    measured.add_argument("--checkpoint", type=nonempty, metavar="CKPT",
                          help="Hugging Face BLIP-2 folder or hub id, for the peers")  # fmt: skip
    measured.add_argument("--scaling", action="store_true",
                          help="also measure batches of 1 to 16, 1 to 8 callers, 1 and 2 threads")  # fmt: skip
    measured.add_argument("--roofline", choices=[*boards.BOARDS, boards.ALL], metavar="BOARD",
                          help="measure nothing: the least times of a bundle of the target trt on an NVIDIA board, by "
                          f"its data sheet ({', '.join(boards.BOARDS)}, or {boards.ALL})")  # fmt: skip
    how = parser.add_argument_group("how")
    how.add_argument("--image", type=nonempty, metavar="FILE", help="picture to caption (default: one that is made up)")
    how.add_argument("--batch", type=whole(1, 64), default=1, metavar="N", help="images in one call")
    how.add_argument("--beams", type=whole(1, 100), default=1, metavar="N", help="beam width; 1 is greedy")
    how.add_argument("--new-tokens", type=whole(1, 1000), default=20, metavar="N", help="tokens of every caption")
    how.add_argument("--threads", type=whole(1, 1024), metavar="N",
                     help="threads of every operator (default: $BLIP2RT_NUM_THREADS, or every core)")  # fmt: skip
    how.add_argument("--repeat", type=whole(1, 10000), default=10, metavar="N", help="runs of each stage")
    output = parser.add_argument_group("output")
    output.add_argument("--json", type=nonempty, metavar="FILE",
                        help="write everything measured; - is the last line of stdout")  # fmt: skip
    output.add_argument("--markdown", type=nonempty, metavar="FILE", help="write the tables as Markdown; - is stdout")
    output.add_argument("--plot", type=nonempty, metavar="FILE.png", help="draw stages, limits, peers and scaling")
    return parser


def _run(args: argparse.Namespace) -> int:
    _check(args)
    if args.roofline is not None:
        return _roofline(args)
    for name in dict.fromkeys(args.peer):
        if reason := collect.absent(name):
            print(f"{name} is not measured: {reason}", file=sys.stderr)
    signal.signal(signal.SIGTERM, ending.on_sigterm)
    with ending.temporary_folder() as folder:
        result = collect.collect(_plan(args, Path(folder)))
    report.show(result, sys.stdout)
    if args.plot is not None:
        from . import plot

        plot.save(result, Path(args.plot))
    if args.markdown is not None:
        _write("markdown", args.markdown, report.markdown(result))
    if args.json is not None:  # after Markdown: of stdout it is the last line
        _write("json", args.json, json.dumps(result, indent=None if args.json == "-" else 2) + "\n")
    return 0


def _roofline(args: argparse.Namespace) -> int:
    """The table of boards. Nothing runs, so that no GPU and no data file is needed."""
    if args.geometry is not None:
        precision = geometry.PRECISION_TRT if args.precision is None else args.precision
        bundle = geometry.bundle(args.geometry, precision, geometry.cache(args.cache), "trt")
    else:
        bundle = embedded() if args.model is None else Path(args.model)
    names = list(boards.BOARDS) if args.roofline == boards.ALL else [args.roofline]
    table = boards.roofline(read(bundle), names)
    report.draw([table], sys.stdout)
    if args.markdown is not None:
        _write("markdown", args.markdown, report.markdown_table(table) + "\n")
    if args.json is not None:
        rows = [dict(zip(table.head, row, strict=True)) for row in table.rows]
        _write("json", args.json, json.dumps({"title": table.title, "boards": rows}) + "\n")
    return 0


def _write(flag: str, given: str, content: str) -> None:
    """Write into the file that was given, - being stdout. Raises OptionError: it cannot be written."""
    if given == "-":
        print(content, end="", flush=True)
        return
    try:
        write_file(Path(given), content.encode())
    except OSError as error:
        raise OptionError(f"--{flag} {given}: {error.strerror or error}") from error


def _check(args: argparse.Namespace) -> None:
    """Everything that minutes of measuring would end in. Raises OptionError: all faults at once."""
    faults = [*_output_faults(args), *_peer_faults(args)]
    if args.precision is not None and args.geometry in (None, geometry.NANO):
        faults.append("--precision is of a bundle that is made: give --geometry, and not nano")
    if args.image is not None and Path(args.image).is_dir():
        faults.append(f"--image {args.image} is a folder: name a file")
    elif args.image is not None and not Path(args.image).is_file():
        faults.append(f"--image: no such file: {args.image!r}")
    if faults:
        raise OptionError("; ".join(faults))


def _output_faults(args: argparse.Namespace) -> Iterator[str]:
    import importlib.util

    for flag in ("json", "markdown", "plot"):
        given = getattr(args, flag)
        if given in (None, "-"):
            continue
        if not Path(given).resolve().parent.is_dir():
            yield f"--{flag} {given}: there is no folder {Path(given).resolve().parent}"
        elif Path(given).is_dir():
            yield f"--{flag} {given} is a folder: name a file"
    if args.plot is None:
        return
    if importlib.util.find_spec("matplotlib") is None:
        yield f"--plot needs matplotlib: {pip_install('bench')}"
    if Path(args.plot).suffix.lower() not in (".png", ".svg", ".pdf"):
        yield f"--plot {args.plot}: name a file ending in .png, .svg or .pdf"


def _peer_faults(args: argparse.Namespace) -> Iterator[str]:
    if args.checkpoint is None:
        if args.peer and args.geometry in (None, geometry.NANO):
            yield (
                "--peer needs a model that the others have too: give --geometry (not nano, whose encoder transformers "
                "lacks), or --checkpoint with the Hugging Face checkpoint of --model"
            )
        return
    if not args.peer:
        yield f"--checkpoint {args.checkpoint} is what peers load: give --peer"
    folder = Path(args.checkpoint)
    hub = not folder.exists() and re.fullmatch(_HUB_ID, args.checkpoint)
    if not hub and not (folder / "config.json").is_file():
        yield (
            f"--checkpoint {args.checkpoint} is no folder with a config.json: give that of a Hugging Face BLIP-2 "
            "checkpoint, or a hub id as Salesforce/blip2-opt-2.7b"
        )


def _plan(args: argparse.Namespace, folder: Path) -> collect.Plan:
    threads = args.threads or num_threads() or machine.cores()
    kept = geometry.cache(args.cache)
    if args.geometry is not None:
        precision = geometry.PRECISION if args.precision is None else args.precision
        bundle = geometry.bundle(args.geometry, precision, kept)
    else:
        bundle = embedded() if args.model is None else Path(args.model)
    _check_bundle(bundle, args)
    image = str(picture(folder / "photograph.jpg")) if args.image is None else args.image
    work = Work(str(bundle), image, args.batch, args.beams, args.new_tokens, threads, args.repeat)
    config = args.checkpoint
    if config is None and any(collect.absent(name) is None for name in args.peer):
        config = str(geometry.config(args.geometry, kept))
    return collect.Plan(work, args.geometry, tuple(dict.fromkeys(args.peer)), config, args.scaling)


def _check_bundle(path: Path, args: argparse.Namespace) -> None:
    """Raises Blip2rtError: it is none, does not caption, or has no room for so many tokens."""
    from ..image import prepare

    manifest = read(path).manifest
    if manifest.llm is None:
        raise OptionError(f"{path} does not caption: give a bundle with a language model")
    room = manifest.llm.max_positions - (1 if manifest.llm.encoder_decoder else manifest.llm.prefix_length + 8)
    if args.new_tokens > room:
        raise OptionError(f"--new-tokens is {args.new_tokens}, but this model has room for {room}")
    if args.image is not None:
        prepare(args.image, manifest.image)


def picture(path: Path, width: int = 1000, height: int = 750) -> Path:
    """A JPEG of smooth colours and some noise, as large a file as a photograph of that size."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(colours.resize((width, height), Image.Resampling.BICUBIC))
    noisy = smooth + rng.normal(0, 4, (height, width, 3))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, "JPEG", quality=90)
    return path


if __name__ == "__main__":
    sys.exit(main())
