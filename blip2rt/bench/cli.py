"""The command `blip2rt-bench`: parses, measures, prints. Results on stdout, everything else on stderr.

Exit codes: 0 all went well, 2 a mistake in the input (one line says which), 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from .. import __version__
from ..bundle import embedded, read
from ..errors import Blip2rtError, OptionError
from . import collect, geometry, machine, peers, report
from .stages import Work

_EPILOG = f"""\
geometries: {", ".join(geometry.GEOMETRIES)}. A bundle of random weights is made once, by the
exporter (pip install 'blip2rt[export]'), and kept in --cache; nano is the embedded model.
peers: {", ".join(peers.PEERS)}. Each runs alone, after the others have given back their
memory, on random weights of the same geometry, or on those of --checkpoint.

examples:
  blip2rt-bench
  blip2rt-bench --geometry blip2-opt-2.7b --peer hf-fp32 --peer hf-bf16 --json opt.json --plot opt.png
  blip2rt-bench --model opt --checkpoint Salesforce/blip2-opt-2.7b --peer hf-bf16 --json -
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{' '.join(message.split())} (see blip2rt-bench --help)")


def _whole(low: int, high: int) -> Any:
    def read_number(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {low} to {high}")
        return int(text)

    return read_number


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="blip2rt-bench", epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="How fast a bundle is on this machine, how close to its limits, and against whom.",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"blip2rt {__version__}")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", metavar="BUNDLE", help="a bundle's folder (default: the embedded model)")
    source.add_argument("--geometry", choices=geometry.GEOMETRIES, metavar="NAME", help="random weights, see below")
    parser.add_argument("--precision", default=None, metavar="GROUP=P,...",
                        help=f"of a geometry's parts (default: {geometry.PRECISION})")  # fmt: skip
    parser.add_argument("--cache", metavar="FOLDER", help="where such bundles are kept (default: ~/.cache/blip2rt)")
    parser.add_argument("--image", metavar="FILE", help="the picture to caption (default: one that is made up)")
    parser.add_argument("--batch", type=_whole(1, 64), default=1, metavar="N", help="images together (default: 1)")
    parser.add_argument("--beams", type=_whole(1, 100), default=1, metavar="N", help="of the search (default: 1)")
    parser.add_argument("--new-tokens", type=_whole(1, 1000), default=20, metavar="N",
                        help="of every caption, exactly (default: 20)")  # fmt: skip
    parser.add_argument("--threads", type=_whole(1, 1024), default=None, metavar="N", help="(default: every core)")
    parser.add_argument("--repeat", type=_whole(1, 10000), default=10, metavar="N", help="runs of each (default: 10)")
    parser.add_argument("--peer", action="append", choices=list(peers.PEERS), default=[], metavar="NAME",
                        help="measure this one too; may be given several times")  # fmt: skip
    parser.add_argument("--checkpoint", metavar="CKPT", help="Hugging Face BLIP-2 folder or hub id, for the peers")
    parser.add_argument("--scaling", action="store_true", help="batches of 1 to 16, 1 to 8 callers, 1 and 2 threads")
    parser.add_argument("--json", metavar="FILE", help="write everything measured; - is the last line of stdout")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables as Markdown")
    parser.add_argument("--plot", metavar="FILE.png", help="draw stages, limits, peers and scaling")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs `blip2rt-bench` with `arguments`, or the process's own; gives the exit code."""
    try:
        return _run(_parser().parse_args(arguments))
    except Blip2rtError as error:
        print(f"blip2rt-bench: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("blip2rt-bench: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"blip2rt-bench: error: {error.filename or 'stdout'}: {error.strerror or error}", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace) -> int:
    _check(args)
    with tempfile.TemporaryDirectory(prefix="blip2rt-bench-") as folder:
        result = collect.collect(_plan(args, Path(folder)))
    report.show(result, sys.stdout)
    if args.plot:
        from . import plot

        plot.save(result, Path(args.plot))
    if args.markdown:
        Path(args.markdown).write_text(report.markdown(result), encoding="utf-8")
    if args.json == "-":
        print(json.dumps(result), flush=True)
    elif args.json:
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Everything that minutes of measuring would end in. Raises OptionError: all faults at once."""
    import importlib.util

    faults = []
    for flag in ("json", "markdown", "plot"):
        given = getattr(args, flag)
        if given and given != "-" and not Path(given).resolve().parent.is_dir():
            faults.append(f"--{flag} {given}: there is no folder {Path(given).resolve().parent}")
        elif given and Path(given).is_dir():
            faults.append(f"--{flag} {given} is a folder: name a file")
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        faults.append("--plot needs matplotlib: pip install 'blip2rt[bench]'")
    if args.plot and Path(args.plot).suffix.lower() not in (".png", ".svg", ".pdf"):
        faults.append(f"--plot {args.plot}: name a file ending in .png, .svg or .pdf")
    if args.precision is not None and args.geometry in (None, geometry.NANO):
        faults.append("--precision is of a bundle that is made: give --geometry, and not nano")
    if args.peer and not args.checkpoint and args.geometry in (None, geometry.NANO):
        faults.append(
            "--peer needs a model that the others have too: give --geometry (not nano, whose encoder transformers "
            "lacks), or --checkpoint with the Hugging Face checkpoint of --model"
        )
    if args.checkpoint and not args.peer:
        faults.append(f"--checkpoint {args.checkpoint} is what peers load: give --peer")
    if args.image is not None and not Path(args.image).is_file():
        faults.append(f"--image: no such file: {args.image!r}")
    if faults:
        raise OptionError("; ".join(faults))


def _plan(args: argparse.Namespace, folder: Path) -> collect.Plan:
    kept = geometry.cache(args.cache)
    if args.geometry:
        bundle = geometry.bundle(args.geometry, args.precision or geometry.PRECISION, kept)
    else:
        bundle = Path(args.model) if args.model else embedded()
    _check_bundle(bundle, args)
    image = args.image or str(picture(folder / "photograph.jpg"))
    work = Work(
        str(bundle), image, args.batch, args.beams, args.new_tokens, args.threads or machine.cores(), args.repeat
    )
    config = None
    if args.peer:
        config = args.checkpoint or str(geometry.config(args.geometry, kept))
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
