"""A BLIP-2 checkpoint of a real geometry with random weights, in Hugging Face's format: fp16 shards, as on the hub.

    python -m benchmarks.make_checkpoint --geometry blip2-opt-2.7b --out /tmp/opt

For measuring export and runtime where the real one cannot be had. Tensors are made and written one by one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from blip2rt.command_line import Parser, path, run
from blip2rt.errors import OptionError
from export.convert import save_tensors
from export.synthetic import GEOMETRIES, random_model, write_config


def make(geometry: str, out: Path) -> None:
    theirs = write_config(geometry, out)
    save_tensors(random_model(out, theirs), out, "float16", theirs)


def main() -> int:
    return run("python -m benchmarks.make_checkpoint", lambda: _run(_parser().parse_args()))


def _parser() -> Parser:
    parser = Parser(description="Random weights in the format of a real BLIP-2 checkpoint.")
    parser.add_argument("--geometry", choices=sorted(GEOMETRIES), default="blip2-opt-2.7b", help="sizes of the model")
    parser.add_argument("--out", type=path, metavar="FOLDER", help="folder to write (default: ./GEOMETRY)")
    return parser


def _run(args: argparse.Namespace) -> None:
    out = args.out or Path(args.geometry)
    if out.exists():
        raise OptionError(f"--out {out} exists already: choose another place")
    make(args.geometry, out)
    print(out)


if __name__ == "__main__":
    sys.exit(main())
