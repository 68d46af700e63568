"""A BLIP-2 checkpoint of a real geometry with random weights, in Hugging Face's format: fp16 shards, as on the hub.

    python -m benchmarks.make_checkpoint --geometry blip2-opt-2.7b --out /tmp/opt

For measuring export and runtime where the real one cannot be had. Tensors are made and written one by one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from export.convert import save_tensors
from export.synthetic import GEOMETRIES, random_model, write_config


def make(geometry: str, out: Path) -> None:
    theirs = write_config(geometry, out)
    save_tensors(random_model(out, theirs), out, "float16", theirs)


def main() -> int:
    parser = argparse.ArgumentParser(description="Random weights in the format of a real BLIP-2 checkpoint.")
    parser.add_argument("--geometry", choices=sorted(GEOMETRIES), default="blip2-opt-2.7b")
    parser.add_argument("--out", type=Path, help="folder to write (default: ./GEOMETRY)")
    args = parser.parse_args()
    out = args.out or Path(args.geometry)
    if out.exists():
        print(f"make_checkpoint: error: {out} exists already: choose another place", file=sys.stderr)
        return 2
    make(args.geometry, out)
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
