"""`blip2rt-build`: a bundle of the target trt -> TensorRT plans in the cache, or a check that they can be built.

Parse, call blip2rt.backends.trt.plans, print. Exit codes: 0 all went well, 2 a mistake or a graph that does not
build (one line says which), 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

from ... import bundle as contract
from ...command_line import Parser, complain, flags_named, nonempty, path, run
from ...errors import BackendError
from . import builder, cuda, gpu, plans
from .cache import PlanCache, default_folder
from .trial import Trial

PROGRAM = "blip2rt-build"
_SIZES = {name: "--" + name.replace("_", "-") for name in ("max_batch", "max_beams", "capacity", "workspace")}
CHECKED = ("SM86", "SM89", "SM120")  # what --check builds for with tensorrt-rtx: Ampere, Ada, Blackwell


def main(arguments: list[str] | None = None) -> int:
    """Run `blip2rt-build` with `arguments`, or the process's own; return the exit code."""
    kept = "interrupted; plans that were whole are kept"
    memory = "close other programs, add swap (docs/jetson.md), or give a smaller --max-batch"
    return run(PROGRAM, lambda: _run(_parser().parse_args(arguments)), interrupted=kept, memory=memory)


def _parser() -> Parser:
    parser = Parser(description="Build the TensorRT plans of a bundle, which blip2rt-export --target trt wrote.",
                    renamed={"--model": "", "--num-beams": "--max-beams", "--beams": "--max-beams"})  # fmt: skip
    parser.add_argument("bundle", type=nonempty, metavar="BUNDLE", help="a bundle's folder")
    parser.add_argument("--check", action="store_true",
                        help="build every graph and keep nothing; tensorrt-rtx needs no GPU for it")  # fmt: skip
    parser.add_argument("--gpu", type=nonempty, metavar="SM,...", help="build for these GPUs, by tensorrt-rtx "
                        f"(default: this machine's; with --check {','.join(CHECKED)})")  # fmt: skip
    parser.add_argument("--no-test", action="store_true",
                        help="do not run plans beside ONNX Runtime on the CPU: accept them as they are")  # fmt: skip
    parser.add_argument("--precision", type=_precisions, default={}, metavar="GRAPH=P,...",
                        help="refuse a bundle whose graphs have other precisions, e.g. vision=int8,llm=int4: export "
                        "chooses them")  # fmt: skip
    sizes = parser.add_argument_group("sizes")
    sizes.add_argument("--max-batch", type=int, default=1, metavar="N", help="most images in one call")
    sizes.add_argument("--max-beams", type=int, default=3, metavar="N", help="most beams, or draws, of an image")
    sizes.add_argument("--capacity", type=int, metavar="N",
                       help="positions of prefix, prompt and new tokens together (default: 256, or the model's "
                       "fewer)")  # fmt: skip
    sizes.add_argument("--workspace", type=_bytes, metavar="SIZE",
                       help="scratch memory of a layer, e.g. 512M or 2G (default: TensorRT's choice)")  # fmt: skip
    places = parser.add_argument_group("places")
    places.add_argument("--timing-cache", type=path, metavar="FILE", help="keep measured kernels here between builds")
    places.add_argument("--cache", type=path, metavar="FOLDER", help="where plans are kept (default: $BLIP2RT_CACHE, "
                        "or blip2rt/engines in the user's cache)")  # fmt: skip
    places.add_argument(
        "--tensorrt", choices=builder.MODULES, help="which TensorRT builds (default: the first that is installed)"
    )
    return parser


def _run(args: argparse.Namespace) -> int:
    bundle = contract.read(args.bundle)
    plans.check_target(bundle)
    plans.check_precision(bundle, args.precision)
    wanted = plans.PlanSizes(args.max_batch, args.max_beams, args.capacity, args.workspace)
    with flags_named(_SIZES):
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
            complain(PROGRAM, fault)
        count, where = len(bundle.manifest.components), ", ".join(gpus) or "this GPU"
        if faults:
            print(f"{len(faults)} of {count} graphs do not build for {where}")
            return 2
        print(f"all {count} graphs build for {where}; leave out --check to build and keep them")
        return 0
    cache = PlanCache(args.cache or default_folder())
    trial = None if asked or args.no_test else _trial(trt, bundle)
    for device in asked or (plans.this_gpu(trt),):
        for component in bundle.manifest.components:
            plan = plans.ensure(trt, bundle, component, sizes, device, cache, _say, trial=trial,
                                accept=args.no_test, timing_cache=args.timing_cache,
                                progress=_progress(component))  # fmt: skip
            print(plan)
    return 0


def _trial(trt: Any, bundle: contract.Bundle) -> Trial | None:
    """What tests plans on this machine's GPU; None where the driver's bindings are missing, which is said."""
    llm = bundle.manifest.llm
    try:
        return Trial(trt, cuda.Cuda(*cuda.load_bindings()), 0 if llm is None else llm.vocab_size)
    except BackendError as error:
        _say(f"what is built will not be tested now: {error}")
        return None


def _memory(bundle: contract.Bundle, sizes: plans.PlanSizes) -> str:
    """What is to be expected, before the work begins."""
    needed, device = plans.estimate(bundle, sizes), gpu.find()
    parts = {"weights": needed.weights, "keys and values": needed.cache, "logits and prompts": needed.logits,
             "pixels and features": needed.buffers, "scratch memory": needed.scratch,
             "CUDA and its libraries": needed.context}  # fmt: skip
    text = ("on the device " + ", ".join(f"{size / 1e6:.0f} MB of {name}" for name, size in parts.items())
            + f": about {needed.running / 1e6:.0f} MB; "
            f"building takes about {needed.building / 1e6:.0f} MB more, one plan at a time")  # fmt: skip
    if not isinstance(device, str) and needed.running > device.memory:
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
        raise argparse.ArgumentTypeError("give a number with K, M or G, e.g. 512M")
    return int(number) * unit


def _precisions(text: str) -> dict[str, str]:
    """ "vision=int8,llm=int4" -> {"vision": "int8", "llm": "int4"}"""
    chosen = {}
    for item in text.split(","):
        graph, _, precision = (word.strip() for word in item.partition("="))
        if not (graph and precision):
            raise argparse.ArgumentTypeError("give graphs and their precisions, e.g. vision=int8,llm=int4")
        chosen[graph] = precision
    return chosen


def _say(text: str) -> None:
    print(f"{PROGRAM}: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
