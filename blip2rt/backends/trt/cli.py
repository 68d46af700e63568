"""`blip2rt-build`: build the TensorRT plans of a bundle of the target trt, or check that they can be built.

Exit status: 0 success, 2 invalid input or a graph that does not build, 130 interrupted.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...bundle import Bundle, read
from ...command_line import Parser, complain, flags_named, nonempty, path, positive_byte_size, run
from ...errors import BackendError
from . import builder, cuda, gpu, plans
from .cache import PlanCache, default_folder
from .plan_check import PlanCheck

PROGRAM = "blip2rt-build"
_SIZES = {name: "--" + name.replace("_", "-") for name in ("max_batch", "max_beams", "capacity", "workspace")}
CHECKED = ("SM86", "SM89", "SM120")  # GPUs that --check builds for with tensorrt-rtx: Ampere, Ada, Blackwell


def main(arguments: list[str] | None = None) -> int:
    """Run `blip2rt-build` with `arguments`, by default those of the process. Return the exit status."""
    interrupted = "interrupted; finished plans remain in the cache"
    memory = "close other programs, add swap, or give a smaller --max-batch"
    return run(PROGRAM, lambda: _run(_parser().parse_args(arguments)), interrupted=interrupted, memory=memory)


def _parser() -> Parser:
    parser = Parser(
        description="Build the TensorRT plans of a bundle that blip2rt-export --target trt wrote.",
        renamed={"--model": "", "--num-beams": "--max-beams", "--beams": "--max-beams"},
        explained={"--precision": "the graphs decide: export them with blip2rt-export --target trt --precision ..."},
    )
    add = parser.add_argument
    add("bundle", type=nonempty, metavar="BUNDLE", help="folder of the bundle")
    add("--check", action="store_true", help="build every graph without storing the plans; tensorrt-rtx needs no GPU")
    gpus = f"GPUs to build for, with tensorrt-rtx (default: this machine's; with --check {','.join(CHECKED)})"
    add("--gpu", type=nonempty, metavar="SM,...", help=gpus)
    add("--no-test", action="store_true", help="accept plans without comparing them with ONNX Runtime on the CPU")
    trusted = "allow operators that blip2rt-export does not write, for graphs of your own"
    add("--trusted-graphs", action="store_true", help=trusted)
    add = parser.add_argument_group("sizes").add_argument
    add("--max-batch", type=int, default=1, metavar="N", help="maximum images per call")
    add("--max-beams", type=int, default=3, metavar="N", help="maximum beams or draws per image")
    capacity = "positions of prefix, prompt and new tokens together (default: 256, or the model's maximum if smaller)"
    add("--capacity", type=int, metavar="N", help=capacity)
    workspace = "maximum scratch memory of a layer, e.g. 512M or 2G (default: TensorRT's choice)"
    add("--workspace", type=positive_byte_size, metavar="SIZE", help=workspace)
    add = parser.add_argument_group("files").add_argument
    cache = "folder of the plans (default: $BLIP2RT_CACHE, or blip2rt/engines in the user's cache)"
    add("--cache", type=path, metavar="FOLDER", help=cache)
    add("--tensorrt", choices=builder.MODULES, help="TensorRT module to build with (default: the first installed)")
    return parser


def _run(args: argparse.Namespace) -> int:
    bundle = replace(read(args.bundle), trusted_graphs=args.trusted_graphs)
    plans.check_target(bundle)
    with flags_named(_SIZES):
        sizes = plans.resolve(bundle, plans.PlanSizes(args.max_batch, args.max_beams, args.capacity, args.workspace))
    trt = builder.load_tensorrt(args.tensorrt)
    _report(f"{builder.identity(trt)}; {_memory_estimate(bundle, sizes)}")
    targets = tuple(filter(None, (args.gpu or "").upper().replace(" ", "").split(",")))
    if targets and not builder.builds_without_gpu(trt):
        raise BackendError(
            f"--gpu {args.gpu}: {trt.__name__} builds only for this machine's GPU: for others give "
            "--tensorrt tensorrt_rtx"
        )
    if args.check:
        gpus = targets or (CHECKED if builder.builds_without_gpu(trt) else ())
        faults = plans.check(trt, bundle, sizes, gpus, _report)
        for fault in faults:
            complain(PROGRAM, fault)
        count, where = len(bundle.manifest.components), ", ".join(gpus) or "this GPU"
        if faults:
            print(f"{len(faults)} of {count} graphs do not build for {where}")
            return 2
        print(f"all {count} graphs build for {where}; leave out --check to build and store the plans")
        return 0
    cache = PlanCache(args.cache or default_folder())
    check = None if targets or args.no_test else _plan_check(trt, bundle)
    for device in targets or (plans.this_gpu(trt),):
        for component in bundle.manifest.components:
            options: dict[str, Any] = {"accept": args.no_test, "check_plan": check}
            options["progress"] = _progress(component)
            print(plans.ensure(trt, bundle, component, sizes, device, cache, _report, **options))
    return 0


def _plan_check(trt: Any, bundle: Bundle) -> PlanCheck | None:
    """The check of plans on this machine's GPU; None, with a message, if the driver or its bindings are missing."""
    llm = bundle.manifest.llm
    try:
        return PlanCheck(trt, cuda.Cuda(*cuda.load_bindings()), 0 if llm is None else llm.vocab_size)
    except BackendError as error:
        _report(f"the plans will not be tested now: {error}")
        return None


def _memory_estimate(bundle: Bundle, sizes: plans.PlanSizes) -> str:
    """The expected device memory, in words."""
    needed, device = plans.estimate(bundle, sizes), gpu.find()
    parts = {
        "weights": needed.weights,
        "keys and values": needed.cache,
        "logits and prompts": needed.logits,
        "pixels and features": needed.buffers,
        "scratch memory": needed.scratch,
        "CUDA and its libraries": needed.context,
    }
    text = "on the device " + ", ".join(f"{size / 1e6:.0f} MB of {name}" for name, size in parts.items())
    text += f": about {needed.running / 1e6:.0f} MB; "
    text += f"building takes about {needed.building / 1e6:.0f} MB more, one plan at a time"
    if not isinstance(device, str) and needed.running > device.memory:
        text += f"; {device.name} has only {device.memory / 1e6:.0f} MB, which is not enough to run it"
    return text


def _progress(component: str) -> Callable[[str, int, int], None] | None:
    """A progress line on a terminal, updated a few times a second."""
    if not sys.stderr.isatty():
        return None
    updated = time.monotonic()

    def show(phase: str, done: int, total: int) -> None:
        nonlocal updated
        if time.monotonic() - updated > 0.3:
            updated = time.monotonic()
            print(f"\r\033[K{component}: {phase} {done}/{total}", end="\r", file=sys.stderr, flush=True)

    return show


def _report(text: str) -> None:
    print(f"{PROGRAM}: {text}", file=sys.stderr, flush=True)
