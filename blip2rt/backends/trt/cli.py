"""`blip2rt-build`: a bundle of the target trt -> TensorRT engines in the cache, or a check that they can be built.

Parses, calls blip2rt.backends.trt.plans, prints. Exit codes: 0 all went well, 2 a mistake or a graph that does not
build (one line says which), 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ... import bundle as contract
from ...errors import BackendError, Blip2rtError
from . import builder, gpu, plans
from .cache import PlanCache, default_folder

CHECKED = ("SM86", "SM89", "SM120")  # what --check builds for with tensorrt-rtx: Ampere, Ada, Blackwell


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"blip2rt-build: error: {' '.join(message.split())} (see blip2rt-build --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="blip2rt-build", description="Builds the TensorRT engines of a bundle (--target trt).")
    parser.add_argument("bundle", metavar="BUNDLE", help="a folder that blip2rt-export --target trt wrote")
    parser.add_argument("--check", action="store_true",
                        help="build every graph and keep nothing; tensorrt-rtx needs no GPU for it")  # fmt: skip
    parser.add_argument("--gpu", metavar="SM,...", help=f"for other GPUs than this one, by tensorrt-rtx (--check: "
                        f"{','.join(CHECKED)})")  # fmt: skip
    parser.add_argument("--precision", type=_precisions, default={}, metavar="GRAPH=P,...",
                        help="what the graphs have to be, e.g. vision=int8,llm=int4: it is chosen at export, and a "
                        "bundle of another precision is refused")  # fmt: skip
    parser.add_argument("--max-batch", type=int, default=1, metavar="N", help="images at once (default: 1)")
    parser.add_argument("--max-beams", type=int, default=3, metavar="N", help="beams or draws (default: 3)")
    parser.add_argument("--capacity", type=int, metavar="N",
                        help="prefix, prompt and new tokens together (default: 256, or the model's fewer)")  # fmt: skip
    parser.add_argument("--workspace", type=_bytes, metavar="SIZE", help="scratch memory of a layer, e.g. 512M or 2G")
    parser.add_argument("--timing-cache", type=Path, metavar="FILE", help="measured kernels, kept between builds")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="where engines are kept (default: BLIP2RT_CACHE, "
                        "or blip2rt/engines in the user's cache)")  # fmt: skip
    parser.add_argument("--tensorrt", choices=builder.MODULES, help="which of them (default: the first installed)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs `blip2rt-build` with `arguments`, or the process's own; gives the exit code."""
    args = _parser().parse_args(arguments)
    try:
        return _run(args)
    except Blip2rtError as error:
        return _complain(error)
    except MemoryError:
        return _complain("not enough memory: close other programs, add swap (docs/jetson.md), or a smaller --max-batch")
    except KeyboardInterrupt:
        print("blip2rt-build: interrupted; engines that were whole are kept", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace) -> int:
    bundle = contract.read(args.bundle)
    plans.check_target(bundle)
    plans.check_precision(bundle, args.precision)
    wanted = plans.PlanSizes(args.max_batch, args.max_beams, args.capacity, args.workspace)
    sizes = plans.resolve(bundle, wanted)
    trt = builder.load_tensorrt(args.tensorrt)
    _say(f"{builder.identity(trt)}; {_memory(bundle, sizes)}")
    asked = tuple(filter(None, (args.gpu or "").upper().replace(" ", "").split(",")))
    if asked and not builder.builds_for_any(trt):
        raise BackendError(
            f"--gpu {args.gpu}: {trt.__name__} builds for this machine's GPU alone; for others --tensorrt tensorrt_rtx"
        )
    if args.check:
        gpus = asked or (CHECKED if builder.builds_for_any(trt) else ())
        faults = plans.check(trt, bundle, sizes, gpus, _say)
        for fault in faults:
            _complain(fault)
        return 2 if faults else 0
    cache = PlanCache(args.cache or default_folder())
    for device in asked or (plans.this_gpu(trt),):
        for component in bundle.manifest.components:
            plan = plans.ensure(trt, bundle, component, sizes, device, cache, _say,
                                  timing_cache=args.timing_cache, progress=_progress(component))  # fmt: skip
            print(plan)
    return 0


def _memory(bundle: contract.Bundle, sizes: plans.PlanSizes) -> str:
    """What is to be expected, before the work begins."""
    needed, device = plans.estimate(bundle, sizes), gpu.find()
    text = (f"on the device {needed.weights / 1e6:.0f} MB of weights, {needed.cache / 1e6:.0f} MB of keys and values; "
            f"building takes about {needed.building / 1e6:.0f} MB more, one engine at a time")  # fmt: skip
    if not isinstance(device, str) and needed.weights + needed.cache > device.memory:
        text += f"; {device.name} has {device.memory / 1e6:.0f} MB in all, which is not enough to run it"
    return text


def _progress(component: str) -> Callable[[str, int, int], None] | None:
    """A line on the terminal, drawn a few times a second."""
    if not sys.stderr.isatty():
        return None
    drawn = time.monotonic()

    def show(phase: str, done: int, total: int) -> None:
        nonlocal drawn
        if time.monotonic() - drawn > 0.3:
            drawn = time.monotonic()
            print(f"\r\033[K{component}: {phase} {done}/{total}", end="\r", file=sys.stderr, flush=True)

    return show


def _bytes(text: str) -> int:
    """ "512M" -> bytes"""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    number, unit = (text[:-1], units.get(text[-1:].upper(), 0)) if text[-1:].isalpha() else (text, 1)
    if not (number.isascii() and number.isdigit() and unit and int(number)):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: give a number with K, M or G, e.g. 512M")
    return int(number) * unit


def _precisions(text: str) -> dict[str, str]:
    """ "vision=int8,llm=int4" -> {"vision": "int8", "llm": "int4"}"""
    chosen = {}
    for item in text.split(","):
        graph, _, precision = (word.strip() for word in item.partition("="))
        if not (graph and precision):
            raise argparse.ArgumentTypeError(f"{item!r}: give graphs and their precisions, e.g. vision=int8,llm=int4")
        chosen[graph] = precision
    return chosen


def _say(text: str) -> None:
    print(f"blip2rt-build: {text}", file=sys.stderr, flush=True)


def _complain(error: Any) -> int:
    print(f"blip2rt-build: error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
