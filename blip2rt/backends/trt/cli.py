"""`blip2rt-build`: build the TensorRT plans of a bundle of the target trt, or check that they can be built.

Exit status: 0 success, 2 invalid input or a graph that does not build, 130 interrupted.
"""

import argparse
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...bundle import Bundle, read
from ...command_line import Parser, complain, flags_named, nonempty, path, positive_byte_size, run
from ...errors import BackendError
from . import builder, gpu, plan_check, plans
from .cache import PlanCache, default_folder
from .cuda import Device, load_bindings
from .engine import Plan

PROGRAM = "blip2rt-build"
_SIZES = {name: "--" + name.replace("_", "-") for name in ("max_batch", "max_beams", "capacity", "workspace")}
CHECKED = ("SM86", "SM89", "SM120")  # for --check with tensorrt-rtx: Ampere, Ada, Blackwell


def main(arguments: list[str] | None = None) -> int:
    """Run `blip2rt-build` with `arguments`, by default those of the process. Return the exit status."""
    interrupted = "interrupted; finished plans remain in the cache"
    memory = "close other programs, add swap, or give a smaller --max-batch"
    return run(PROGRAM, lambda: _run(_parser().parse_args(arguments)), interrupted=interrupted, memory=memory)


def _parser() -> Parser:
    parser = Parser(
        description="Build the TensorRT plans of a bundle that blip2rt-export --target trt wrote.",
        renamed={"--model": "", "--num-beams": "--max-beams", "--beams": "--max-beams"},
        explained={
            "--precision": "the graphs decide: export them with blip2rt-export --target trt --precision ...",
            "--gpu": "a plan runs on the kind of GPU that built it: run blip2rt-build there",
            "--tensorrt": "plans are built by tensorrt; without it, --check uses tensorrt-rtx",
        },
    )
    add = parser.add_argument
    add("bundle", type=nonempty, metavar="BUNDLE", help="folder of the bundle")
    add(
        "--check",
        action="store_true",
        help="build every graph without storing the plans; with tensorrt-rtx, no GPU is needed",
    )
    add("--no-test", action="store_true", help="do not compare the plans with ONNX Runtime on the CPU")
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
    return parser


def _run(args: argparse.Namespace) -> int:
    bundle = replace(read(args.bundle), trusted_graphs=args.trusted_graphs)
    plans.check_target(bundle)
    with flags_named(_SIZES):
        sizes = plans.resolve(bundle, plans.PlanSizes(args.max_batch, args.max_beams, args.capacity, args.workspace))
    if args.check:
        return _check(bundle, sizes)
    trt = builder.load_tensorrt()
    _report(f"{builder.identity(trt)}; {_memory_estimate(bundle, sizes)}")
    cache, device = PlanCache(args.cache or default_folder()), plans.this_gpu()
    status = 0
    for component in plans.components(bundle):
        plan = plans.ensure(trt, bundle, component, sizes, device, cache, _report)
        print(plan)
        if not args.no_test and not _agrees(trt, bundle, component, sizes, plan):
            status = 2
    return status


def _check(bundle: Bundle, sizes: plans.PlanSizes) -> int:
    """Build every graph without storing the plans, with tensorrt-rtx for common GPUs if tensorrt is not installed."""
    gpus: tuple[str, ...] = ()
    try:
        trt = builder.load_tensorrt()
    except BackendError:
        if importlib.util.find_spec("tensorrt_rtx") is None:
            raise
        trt, gpus = builder.load_tensorrt("tensorrt_rtx"), CHECKED
    _report(f"{builder.identity(trt)}; {_memory_estimate(bundle, sizes)}")
    faults = plans.check(trt, bundle, sizes, gpus, _report)
    for fault in faults:
        complain(PROGRAM, fault)
    count, where = len(plans.components(bundle)), ", ".join(gpus) or "this GPU"
    if faults:
        print(f"{len(faults)} of {count} graphs do not build for {where}")
        return 2
    print(f"all {count} graphs build for {where}; leave out --check to build and store the plans")
    return 0


def _agrees(trt: Any, bundle: Bundle, component: str, sizes: plans.PlanSizes, file: Path) -> bool:
    """Whether a plan's outputs agree with ONNX Runtime's. Report the cosine in each profile, or why there is none."""
    graph, log, agrees = bundle.checked_graph(component), builder.logger(trt), True
    try:
        plan = Plan(Device(load_bindings()), trt, builder.create(log, trt.Runtime), file, component, log)
        for number, axes in enumerate(plans.profiles(bundle, component, sizes)):
            cosine, name = plan_check.cosine(plan, bundle.manifest.components[component], graph, axes)
            _report(f"{component}: profile {number} has a cosine of {cosine:.4f} with ONNX Runtime ({name})")
            if cosine < plan_check.MIN_COSINE:
                complain(
                    PROGRAM,
                    f"{component}: the plan is wrong ({name} of profile {number} has a cosine of {cosine:.3f} with the "
                    f"graph's): use another TensorRT or precision, and delete {file}",
                )
                agrees = False
    except Exception as error:  # ONNX Runtime has its own kinds, also for a lack of memory
        _report(f"{component}: not compared with ONNX Runtime: {error}")
    return agrees


def _memory_estimate(bundle: Bundle, sizes: plans.PlanSizes) -> str:
    """The expected device memory, in words."""
    needed, device = plans.estimate(bundle, sizes), gpu.find()
    text = f"{needed.weights / 1e6:.0f} MB of weights, {needed.cache / 1e6:.0f} MB of keys and values, about "
    text += f"{needed.running / 1e6:.0f} MB with CUDA; building takes about {needed.building / 1e6:.0f} MB more, one "
    text += "plan at a time"
    if not isinstance(device, str) and needed.running > device.memory:
        text += f"; {device.name} has only {device.memory / 1e6:.0f} MB, which is not enough to run it"
    return text


def _report(text: str) -> None:
    print(f"{PROGRAM}: {text}", file=sys.stderr, flush=True)
