"""Writes a BLIP-2 checkpoint with random weights in a real geometry, as fp16 shards in Hugging Face's format.

    python -m benchmarks.make_checkpoint --geometry blip2-opt-2.7b --out /tmp/opt

It replaces a real checkpoint when measuring the export. Tensors are created and written one by one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from blip2rt.command_line import Parser, path, run
from blip2rt.errors import OptionError
from export.convert import save_tensors
from export.synthetic import GEOMETRIES, RandomCheckpoint, write_config


def make(geometry: str, out: Path) -> None:
    theirs = write_config(geometry, out)
    save_tensors(RandomCheckpoint(out, geometry).load(), out, "float16", theirs)


def main() -> int:
    return run("python -m benchmarks.make_checkpoint", lambda: _run(_parser().parse_args()))


def _parser() -> Parser:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--geometry", choices=sorted(GEOMETRIES), default="blip2-opt-2.7b", help="sizes of the model")
    parser.add_argument("--out", type=path, metavar="FOLDER", help="folder to write (default: ./GEOMETRY)")
    return parser


def _run(args: argparse.Namespace) -> None:
    out = args.out or Path(args.geometry)
    if out.exists():
        raise OptionError(f"--out {out} already exists: give another folder")
    make(args.geometry, out)
    print(out)


if __name__ == "__main__":
    sys.exit(main())
