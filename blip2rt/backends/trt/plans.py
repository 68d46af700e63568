"""A bundle of the target trt -> a plan for each component: sizes of free axes, memory, building, the cache.

Knows bundles and what their graphs are run with, nothing about TensorRT itself: that is builder's.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ... import bundle as contract
from ...bundle import Bundle
from ...errors import BackendError, BundleError, OptionError
from ...untrusted.graphs import checked_graph
from . import builder, gpu
from .builder import Axes, Settings
from .cache import PlanCache
from .sizes import Sizes, aligned, cache_bytes, logits_bytes

_BUILD_COPIES = 3  # of a plan's weights while it is built: the parsed graph, the builder's own, the plan
_HEAD = 64  # width of an attention head of image encoders and Q-Formers
_TABLE = 6  # times its width, in float32: a row of a table of 4 bits while it is taken apart
_CONTEXT = 500 << 20  # bytes that CUDA's context and the libraries take: an allowance, since no GPU has said it
_POSITIONS = 256  # capacity of the cache unless asked otherwise: prefix, prompt and answer of captions and questions
# Where a tensor lies in a data file, as ONNX's external_data has it: offset and length in decimal digits.
_EXTERNAL = re.compile(rb"\n\x06offset\x12.(\d+)j.\n\x06length\x12.(\d+)", re.DOTALL)
Say = Callable[[str], None]
# component, plan, graph, profiles -> what a test of the plan has found
Trial = Callable[[str, Path, Path, Sequence[Axes]], Mapping[str, Any]]


@dataclass(frozen=True)
class PlanSizes:
    """What plans are built for. Other sizes need other plans."""

    max_batch: int = 1  # images at once
    max_beams: int = 3  # beams, or draws, of an image
    capacity: int | None = (
        None  # positions of the cache: prefix, prompt and new tokens; None: 256, or the model's fewer
    )
    workspace: int | None = None  # bytes of scratch memory that a layer may take; None: TensorRT's choice


@dataclass(frozen=True)
class Estimate:
    """Bytes that a bundle takes on the device, before anything is built."""

    weights: int
    cache: int  # keys and values
    logits: int  # and what else a generation keeps of rows and prompts
    buffers: int  # what goes into the other plans and comes out: pixels, features, embeddings
    scratch: int  # of the plan that needs most; what TensorRT will take is not known before it has built
    largest: int  # weights of the largest plan
    context: int = _CONTEXT

    @property
    def running(self) -> int:
        """Bytes that one generation at a time takes, from pixels to tokens."""
        return self.weights + self.cache + self.logits + self.buffers + self.scratch + self.context

    @property
    def building(self) -> int:
        """Bytes that building takes: plans are built one at a time, so the largest decides."""
        return _BUILD_COPIES * self.largest


def check_target(bundle: Bundle) -> None:
    """Raise BackendError where the bundle's graphs are not for TensorRT."""
    if bundle.manifest.target != "trt":
        raise BackendError(
            f"{bundle.path} was exported for {bundle.manifest.target}: export it with blip2rt-export --target trt"
        )


def check_precision(bundle: Bundle, wanted: Mapping[str, str]) -> None:
    """Raise OptionError for components that the bundle lacks, or has in another precision than `wanted`."""
    components, faults = bundle.manifest.components, []
    for name, precision in wanted.items():
        if name not in components:
            faults.append(f"{name!r}: the bundle has {', '.join(components)}")
        elif components[name].precision not in (precision, f"{precision}-static"):
            faults.append(f"{name} is {components[name].precision}, not {precision}: graphs get their precision from "
                          f"blip2rt-export --target trt --precision")  # fmt: skip
    if faults:
        raise OptionError(f"--precision: {'; '.join(faults)}")


def resolve(bundle: Bundle, sizes: PlanSizes) -> PlanSizes:
    """Fill in the capacity. Raises OptionError that names all that makes no sense for the bundle."""
    llm, faults = bundle.manifest.llm, []
    for name in ("max_batch", "max_beams"):
        value = getattr(sizes, name)
        if not 1 <= value <= 64:
            faults.append(f"{name} is {value}: give 1 to 64")
    if sizes.workspace is not None and sizes.workspace < 1:
        faults.append(f"workspace is {sizes.workspace}: give a number of bytes above 0")
    capacity = sizes.capacity
    if llm is not None:
        least = llm.prefix_length + 2
        capacity = min(_POSITIONS, llm.max_positions) if capacity is None else capacity
        if not least <= capacity <= llm.max_positions:
            faults.append(f"capacity is {capacity}: give {least} to {llm.max_positions:,} positions for this bundle")
    if faults:
        raise OptionError("; ".join(faults))
    return replace(sizes, capacity=capacity)


def profiles(bundle: Bundle, component: str, sizes: PlanSizes) -> list[Axes]:
    """Sizes of a component's free axes: least, usual, largest. llm and embed have two profiles: a step, a prompt."""
    manifest = bundle.manifest
    rows = sizes.max_batch * sizes.max_beams
    if component in (contract.LLM, contract.ENCODER, contract.EMBED):
        llm, capacity = manifest.llm, sizes.capacity
        assert llm is not None and capacity is not None
        usual = min(llm.prefix_length + 8, capacity)
        prompt = (1, 1 if llm.encoder_decoder else usual, capacity)
        seen = (1, usual, capacity)
        if component == contract.ENCODER:
            return [{"B": _upto(sizes.max_batch), "S": seen}]
        if component == contract.EMBED:
            return [{"B": _upto(rows), "S": (1, 1, 1)}, {"B": _upto(sizes.max_batch), "S": (1, usual, capacity)}]
        fixed: dict[str, tuple[int, int, int]] = {"T": (capacity,) * 3, "S_enc": seen}
        # Beams and draws of an image share its prompt.
        return [{**fixed, "B": _upto(rows), "S": (1, 1, 1)}, {**fixed, "B": _upto(sizes.max_batch), "S": prompt}]
    texts = [spec.max_text_length for spec in (manifest.retrieval, manifest.question) if spec is not None]
    longest = max(texts, default=1)
    return [{"B": _upto(sizes.max_batch), "L": (1, min(16, longest), longest)}]


def _upto(rows: int) -> tuple[int, int, int]:
    return 1, rows, rows


def estimate(bundle: Bundle, sizes: PlanSizes) -> Estimate:
    """Weights of every plan, all buffers of a generation of the largest sizes, and about the scratch memory.

    Weights that two graphs share in a file are counted for both: each plan has its own.
    """
    manifest = bundle.manifest
    weights = [graph_bytes(bundle.graph(component)) for component in manifest.components]
    cache = logits = 0
    if manifest.llm is not None:
        held = language_sizes(bundle, sizes)
        cache, logits = cache_bytes(held), logits_bytes(held)
    return Estimate(sum(weights), cache, logits, _buffers(bundle, sizes), _scratch(bundle, sizes), max(weights))


def language_sizes(bundle: Bundle, sizes: PlanSizes) -> Sizes:
    """The language model's sizes with those of its plans."""
    assert sizes.capacity is not None
    return Sizes.of(bundle.manifest, sizes.max_batch, sizes.max_batch * sizes.max_beams, sizes.capacity)


def _buffers(bundle: Bundle, sizes: PlanSizes) -> int:
    """Bytes of what is handed to the plans but the language model's, whose decoder has buffers of its own."""
    needed = 0
    for name, component in bundle.manifest.components.items():
        if name not in (contract.LLM, contract.ENCODER):
            axes = profiles(bundle, name, sizes)[-1]
            for port in (*component.inputs, *component.outputs):
                shape = (axes[axis][2] if isinstance(axis, str) else axis for axis in port.shape)
                needed += aligned(math.prod(shape) * np.dtype(port.dtype).itemsize)
    return needed


def _scratch(bundle: Bundle, sizes: PlanSizes) -> int:
    """About the bytes that the hungriest plan needs while it runs: scores of attention in float32, and four times the
    width of its rows, as feed-forward layers have it; of a table, the rows that are looked up."""
    needed, manifest = [0], bundle.manifest
    for component in (contract.VISION, contract.QFORMER):
        if component in manifest.components:
            outputs = manifest.components[component].outputs
            rows, width = (size if isinstance(size, int) else 1 for size in outputs[0].shape[-2:])
            needed.append(sizes.max_batch * rows * 4 * (4 * width + rows * -(-width // _HEAD)))
    if manifest.llm is not None:
        llm, capacity = manifest.llm, sizes.capacity or 0
        heads = -(-llm.hidden_size // llm.head_dim)
        for rows, length in ((sizes.max_batch * sizes.max_beams, 1), (sizes.max_batch, capacity)):
            needed.append(rows * length * 4 * (4 * llm.hidden_size + heads * (capacity + length)))
            needed.append(rows * length * 4 * _TABLE * llm.hidden_size)
    return max(needed)


def graph_bytes(graph: Path) -> int:
    """Bytes of a graph's file and of its tensors in data files. Tensors that share a place are loaded one by one."""
    text = graph.read_bytes()
    return len(text) + sum(int(length) for _, length in _EXTERNAL.findall(text))


def runner() -> Any:
    """TensorRT, or what takes its place on this machine's GPU. Raises BackendError."""
    found = gpu.find()
    return builder.load_runner(None if isinstance(found, str) else found.sm)


def this_gpu(trt: Any) -> str:
    """The GPU as a plan's key has it. Raises BackendError where there is none.

    tensorrt chooses kernels by time: its plan is for one card, and Jetson Orins of one name differ in their number of
    multiprocessors. A plan of tensorrt_rtx is for one compute capability.
    """
    found = gpu.find()
    if isinstance(found, str):
        raise BackendError(f"there is no GPU to build for: {found}; --check needs none, --gpu SM86 builds for another")
    if builder.builds_for_any(trt):
        return found.sm
    return f"{found.name} ({found.sm}, {found.multiprocessors} multiprocessors)"


def origin(trt: Any, bundle: Bundle, component: str, sizes: PlanSizes, gpu: str) -> dict[str, Any]:
    """Everything that a component's plan depends on: TensorRT, GPU, graph and weights, sizes."""
    files = bundle.manifest.files or {}
    graph = bundle.graph(component)
    text = graph.read_bytes()  # names the files that its weights are in
    data = {name: entry.sha256 for name, entry in files.items() if name.encode() in text}
    data[graph.name] = hashlib.sha256(text).hexdigest()  # the file as it is: someone may have changed it
    place = {"graph": str(graph.resolve())} if builder.opens_graphs(trt) else {}
    return {
        **place,
        "tensorrt": builder.identity(trt),
        "gpu": gpu,
        "files": data,
        "options": asdict(sizes),  # the key that the notes of built plans have
        "profiles": [{name: list(each) for name, each in axes.items()} for axes in profiles(bundle, component, sizes)],
    }


def check(trt: Any, bundle: Bundle, sizes: PlanSizes, gpus: tuple[str, ...], say: Say) -> list[str]:
    """Parse and build every graph for `gpus`. Keep nothing. Return the faults, one a graph."""
    faults = []
    for component in bundle.manifest.components:
        say(f"{component}: building for {', '.join(gpus) or 'this GPU'}")
        try:
            settings = Settings(gpus, sizes.workspace)
            axes = profiles(bundle, component, sizes)
            plan = builder.build(trt, checked_graph(bundle, component), axes, settings).plan.nbytes
        except (BackendError, BundleError) as error:
            faults.append(f"{component}: {error}")
            continue
        say(f"{component}: a plan of {plan / 1e6:.1f} MB")
    return faults


def ensure(
    trt: Any, bundle: Bundle, component: str, sizes: PlanSizes, device: str, cache: PlanCache, say: Say,
    *, trial: Trial | None = None, accept: bool = False, timing_cache: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:  # fmt: skip
    """Find the component's plan for `device` in `cache`. Build it where it is missing, stale or another machine's.

    device: "SM86" for tensorrt_rtx; for tensorrt the name of the card that is there, the only one it builds for.
    trial: tests a plan that has not been tested, and says what it found, which is kept in the plan's note; None: not
    now, and the next caller that has one tests it. accept: take the plan for good without a test, and one that failed.
    Raises BackendError for a plan that has failed its test.
    """
    source, axes = origin(trt, bundle, component, sizes, device), profiles(bundle, component, sizes)
    plan = cache.find(component, source)
    if plan is None:
        say(f"{component}: building for {device}")
        gpus = (device,) if builder.builds_for_any(trt) else ()
        settings = Settings(gpus, sizes.workspace, _read_timing(timing_cache))
        try:
            built = builder.build(trt, checked_graph(bundle, component), axes, settings, progress)
        except BackendError as error:
            raise BackendError(f"{component}: {error}") from error
        plan = cache.store(component, source, built.plan)
        if timing_cache is not None and built.timing_cache is not None:
            _write_timing(timing_cache, built.timing_cache)
        say(f"{component}: {plan}, {built.plan.nbytes / 1e6:.1f} MB")
        del built  # its plan is as large as the weights
    else:
        if builder.opens_graphs(trt):
            checked_graph(bundle, component)
        say(f"{component}: {plan}")
    tested = cache.note(plan).get("tested")
    if accept and (tested is None or "wrong" in tested):
        tested = {"left out": "it was accepted without a test"}
        cache.tell(plan, tested=tested)
    elif tested is None and trial is not None:
        tested = trial(component, plan, checked_graph(bundle, component), axes)
        if not tested.get("again", False):
            with contextlib.suppress(BackendError):  # a folder that is only read: it is tested each time
                cache.tell(plan, tested=tested)
    if tested is None:
        say(f"{component}: not tested yet: the first load does it")
    elif "wrong" in tested:
        raise BackendError(
            f"{component}: the plan is not the graph: {tested['wrong']} (plans of two profiles by TensorRT before 10.8 "
            f"may be wrong): use another TensorRT or --precision, and remove {plan}; blip2rt-build --no-test accepts it"
        )
    elif "left out" in tested:
        say(f"{component}: not tested: {tested['left out']}")
    return plan


def _read_timing(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise BackendError(f"cannot read the timing cache {path}: {error.strerror or error}") from error


def _write_timing(path: Path, data: bytes) -> None:
    from ...bundle.atomic import write_file

    try:
        write_file(path, data)
    except OSError as error:
        raise BackendError(f"cannot write the timing cache {path}: {error.strerror or error}") from error
