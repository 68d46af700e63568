"""`python -m benchmarks.gpu_day`: run the steps and write the report. See the package's docstring."""

import argparse
import sys
from pathlib import Path

from blip2rt.command_line import Parser, path, run, whole

from . import day, stand_in


def main(arguments: list[str] | None = None) -> int:
    """Run with `arguments`, by default those of the process. Return 0, 1 if a step failed, 2 for invalid input."""
    return run("python -m benchmarks.gpu_day", lambda: _run(_parser().parse_args(arguments)))


def _parser() -> Parser:
    parser = Parser(description="Run every check and benchmark that needs a GPU.")
    add, out = parser.add_argument, day.ROOT / "build" / "gpu_day"
    add("--out", type=path, default=out, metavar="FOLDER", help="folder of the results (default: build/gpu_day)")
    geometry = "language model whose step is compared with the card's bandwidth; little needs no exporter"
    add("--geometry", default="blip2-opt-2.7b", metavar="NAME", help=geometry)
    add("--turns", type=whole(1, 100000), default=40, metavar="N", help="random cases of each kernel")
    add("--limit", type=whole(1, 86400), default=3600, metavar="SECONDS", help="time limit of a step")
    add("--skip", nargs="+", choices=day.NAMES, default=(), metavar="STEP", help="steps to skip")
    add("--stand-in", action="store_true", help="use a simulated driver, to test this command without a GPU")
    add("--step", help=argparse.SUPPRESS)  # for its own child processes
    return parser


def _run(args: argparse.Namespace) -> int:
    out: Path = args.out.resolve()
    today = day.Day(out, args.geometry, args.stand_in, args.turns)
    if args.step is not None:
        from .steps import STEPS

        return day.run_here(today, args.step, STEPS[args.step])
    if args.stand_in:
        stand_in.use(stand_in.library_folder(out))
    results = day.run_all(today, [name for name in day.NAMES if name not in args.skip], args.limit)
    print((out / "report.md").read_text())
    return 1 if any(step["state"] == day.FAILED for step in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
