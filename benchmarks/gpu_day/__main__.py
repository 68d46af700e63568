"""`python -m benchmarks.gpu_day`: parse, take the steps, write. See the package's docstring."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from blip2rt.bundle.atomic import write_file
from blip2rt.command_line import Parser, path, run, whole

from . import day, installed, report, stand_in

OUT = day.ROOT / "build" / "gpu_day"
WHEELS = day.ROOT / "wheels"


def main(arguments: list[str] | None = None) -> int:
    """Run with `arguments`, or the process's own. Return 0 where no step failed, 1 where one did, 2 for a mistake."""
    return run("python -m benchmarks.gpu_day", lambda: _run(_parser().parse_args(arguments)))


def _parser() -> Parser:
    parser = Parser(description="All that only a machine with a GPU can say, by one command; given again, it goes on.")
    parser.add_argument("--out", type=path, default=OUT, metavar="FOLDER", help="where results are kept")
    parser.add_argument("--wheels", type=path, metavar="FOLDER",
                        help="wheels for an environment of the day's own (default: wheels/, where it is)")  # fmt: skip
    parser.add_argument("--geometry", default="blip2-opt-2.7b", metavar="NAME",
                        help="the language model that is held against the card's bandwidth; little is one that needs "
                        "no exporter")  # fmt: skip
    parser.add_argument("--turns", type=whole(1, 100000), default=40, metavar="N", help="random cases of each kernel")
    parser.add_argument("--limit", type=whole(1, 86400), default=3600, metavar="SECONDS", help="most that a step takes")
    parser.add_argument("--skip", nargs="+", choices=day.NAMES, default=(), metavar="STEP", help="leave these out")
    parser.add_argument("--stand-in", action="store_true", help="no GPU: a driver stands in, for a test of the day")
    parser.add_argument("--step", help=argparse.SUPPRESS)  # of the day's own processes
    return parser


def _run(args: argparse.Namespace) -> int:
    out: Path = args.out.resolve()
    today = day.Day(out, args.geometry, args.stand_in, args.turns)
    if args.step is not None:
        from .steps import STEPS

        return day.take_here(today, args.step, STEPS[args.step])
    if args.stand_in:
        stand_in.use(stand_in.library_folder(out))
    wheels = args.wheels or (WHEELS if WHEELS.is_dir() else None)
    python = installed.python_with(wheels, out)
    today = replace(today, **installed.machine(python, today.environment))
    taken = [name for name in day.NAMES if name not in args.skip]

    def keep(results: dict[str, Any]) -> None:
        everything = day.whole(today, results)
        write_file(out / "gpu_day.json", json.dumps(everything, indent=1).encode())
        write_file(out / "report.md", report.markdown(everything).encode())

    results = day.run_all(today, taken, python, args.limit, lambda text: print(text, file=sys.stderr, flush=True), keep)
    print((out / "report.md").read_text())
    return 1 if any(step["state"] == day.FAILED for step in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
