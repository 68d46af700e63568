"""Plans for the components of a bundle of the target trt: optimization profiles, memory estimates, building, caching.

builder.py does what concerns TensorRT itself.
"""

import contextlib
import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...bundle import EMBED, ENCODER, LLM, QFORMER, VISION, Bundle
from ...errors import BackendError, BundleError, OptionError
from . import builder, gpu
from .builder import Axes, Settings
from .cache import PlanCache
from .sizes import Sizes, aligned, cache_bytes, logits_bytes

_BUILD_COPIES = 3  # of a plan's weights during a build: the parsed graph, the builder's copy, the plan
_HEAD_WIDTH = 64  # of an attention head in image encoders and Q-Formers
_TABLE_SCRATCH = 6  # float32 copies of an int4 embedding row while it is unpacked
_CONTEXT_BYTES = 500 << 20  # CUDA's context and libraries: an allowance, not measured on a GPU
_DEFAULT_CAPACITY = 256  # cache positions for prefix, prompt and answer of captions and questions
# A tensor's place in a data file, as in ONNX's external_data: offset and length in decimal digits.
_EXTERNAL = re.compile(rb"\n\x06offset\x12.(\d+)j.\n\x06length\x12.(\d+)", re.DOTALL)
Report = Callable[[str], None]
# component, plan, graph, profiles -> the findings of a check of the plan
CheckPlan = Callable[[str, Path, Path, Sequence[Axes]], Mapping[str, Any]]


@dataclass(frozen=True)
class PlanSizes:
    """The sizes that plans are built for. Other sizes need other plans."""

    max_batch: int = 1  # images at once
    max_beams: int = 3  # beams or draws per image
    capacity: int | None = None  # cache positions: prefix, prompt and new tokens; None: 256 or the model's maximum
    workspace: int | None = None  # maximum scratch memory of a layer in bytes; None: TensorRT's choice


@dataclass(frozen=True)
class Estimate:
    """Estimated device memory of a bundle in bytes."""

    weights: int
    cache: int  # keys and values
    logits: int  # and other buffers of a generation
    buffers: int  # inputs and outputs of the other plans: pixels, features, embeddings
    scratch: int  # of the plan that needs the most; exact numbers are known only after the build
    largest: int  # weights of the largest plan
    context: int = _CONTEXT_BYTES

    @property
    def running(self) -> int:
        """Bytes needed to run one generation at a time, from pixels to tokens."""
        return self.weights + self.cache + self.logits + self.buffers + self.scratch + self.context

    @property
    def building(self) -> int:
        """Additional bytes while building: plans are built one at a time, so the largest decides."""
        return _BUILD_COPIES * self.largest


def check_target(bundle: Bundle) -> None:
    """Raise BackendError if the bundle's graphs are not for TensorRT."""
    if bundle.manifest.target != "trt":
        raise BackendError(
            f"{bundle.path} was exported for {bundle.manifest.target}: export it with blip2rt-export --target trt"
        )


def resolve(bundle: Bundle, sizes: PlanSizes) -> PlanSizes:
    """Fill in the default capacity. Raises OptionError that lists every invalid size."""
    llm, faults = bundle.manifest.llm, []
    for name in ("max_batch", "max_beams"):
        value = getattr(sizes, name)
        if not 1 <= value <= 64:
            faults.append(f"{name} is {value}: give 1 to 64")
    if sizes.workspace is not None and sizes.workspace < 1:
        faults.append(f"workspace is {sizes.workspace}: give a number of bytes above 0")
    capacity = sizes.capacity
    if llm is not None:
        minimum = llm.prefix_length + 2
        capacity = min(_DEFAULT_CAPACITY, llm.max_positions) if capacity is None else capacity
        if not minimum <= capacity <= llm.max_positions:
            faults.append(f"capacity is {capacity}: give {minimum} to {llm.max_positions:,} positions for this bundle")
    if faults:
        raise OptionError("; ".join(faults))
    return replace(sizes, capacity=capacity)


def profiles(bundle: Bundle, component: str, sizes: PlanSizes) -> list[Axes]:
    """The optimization profiles of a component. llm and embed have two: a step and a prompt."""
    manifest = bundle.manifest
    rows = sizes.max_batch * sizes.max_beams
    if component in (LLM, ENCODER, EMBED):
        llm, capacity = manifest.llm, sizes.capacity
        assert llm is not None and capacity is not None
        optimum = min(llm.prefix_length + 8, capacity)
        prompt = (1, 1 if llm.encoder_decoder else optimum, capacity)
        length = (1, optimum, capacity)
        if component == ENCODER:
            return [{"B": _up_to(sizes.max_batch), "S": length}]
        if component == EMBED:
            return [{"B": _up_to(rows), "S": (1, 1, 1)}, {"B": _up_to(sizes.max_batch), "S": length}]
        fixed: dict[str, tuple[int, int, int]] = {"T": (capacity,) * 3, "S_enc": length}
        # Beams and draws of an image share its prompt.
        return [{**fixed, "B": _up_to(rows), "S": (1, 1, 1)}, {**fixed, "B": _up_to(sizes.max_batch), "S": prompt}]
    texts = [spec.max_text_length for spec in (manifest.retrieval, manifest.question) if spec is not None]
    longest = max(texts, default=1)
    return [{"B": _up_to(sizes.max_batch), "L": (1, min(16, longest), longest)}]


def _up_to(rows: int) -> tuple[int, int, int]:
    return 1, rows, rows


def estimate(bundle: Bundle, sizes: PlanSizes) -> Estimate:
    """Estimate the device memory of all plans and of a generation of the largest size.

    Weights that two graphs share in a file count twice, since each plan has its own copy.
    """
    manifest = bundle.manifest
    weights = [graph_bytes(bundle.graph(component)) for component in manifest.components]
    cache = logits = 0
    if manifest.llm is not None:
        llm_sizes = language_sizes(bundle, sizes)
        cache, logits = cache_bytes(llm_sizes), logits_bytes(llm_sizes)
    return Estimate(sum(weights), cache, logits, _buffers(bundle, sizes), _scratch(bundle, sizes), max(weights))


def language_sizes(bundle: Bundle, sizes: PlanSizes) -> Sizes:
    """Sizes of the language model and its plans."""
    assert sizes.capacity is not None
    return Sizes.of(bundle.manifest, sizes.max_batch, sizes.max_batch * sizes.max_beams, sizes.capacity)


def _buffers(bundle: Bundle, sizes: PlanSizes) -> int:
    """Bytes of the inputs and outputs of all plans but the language model's, whose buffers are counted separately."""
    needed = 0
    for name, component in bundle.manifest.components.items():
        if name not in (LLM, ENCODER):
            axes = profiles(bundle, name, sizes)[-1]
            for port in (*component.inputs, *component.outputs):
                shape = (axes[axis][2] if isinstance(axis, str) else axis for axis in port.shape)
                needed += aligned(math.prod(shape) * np.dtype(port.dtype).itemsize)
    return needed


def _scratch(bundle: Bundle, sizes: PlanSizes) -> int:
    """Estimate the scratch memory in bytes of the plan that needs the most.

    Counts float32 attention scores, feed-forward activations of four times the width, and unpacked embedding rows.
    """
    needed, manifest = [0], bundle.manifest
    for component in (VISION, QFORMER):
        if component in manifest.components:
            outputs = manifest.components[component].outputs
            rows, width = (size if isinstance(size, int) else 1 for size in outputs[0].shape[-2:])
            needed.append(sizes.max_batch * rows * 4 * (4 * width + rows * -(-width // _HEAD_WIDTH)))
    if manifest.llm is not None:
        llm, capacity = manifest.llm, sizes.capacity or 0
        heads = -(-llm.hidden_size // llm.head_dim)
        for rows, length in ((sizes.max_batch * sizes.max_beams, 1), (sizes.max_batch, capacity)):
            needed.append(rows * length * 4 * (4 * llm.hidden_size + heads * (capacity + length)))
            needed.append(rows * length * 4 * _TABLE_SCRATCH * llm.hidden_size)
    return max(needed)


def graph_bytes(graph: Path) -> int:
    """Bytes of a graph's file and of its external tensors, counting shared data once for each tensor."""
    text = graph.read_bytes()
    return len(text) + sum(int(length) for _, length in _EXTERNAL.findall(text))


def runner(bundle: Bundle) -> Any:
    """TensorRT or its replacement for this machine's GPU. Raises BackendError."""
    found, components = gpu.find(), bundle.manifest.components.items()
    fp32 = [name for name, component in components if component.precision == "fp32" and name != EMBED]
    return builder.load_runner(None if isinstance(found, str) else found.sm, fp32)


def this_gpu(trt: Any) -> str:
    """This machine's GPU as it appears in a plan's origin. Raises BackendError if there is none.

    tensorrt times kernels, so its plan suits one card; Jetson Orins of the same name differ in their number of
    multiprocessors. A plan of tensorrt_rtx suits one compute capability.
    """
    found = gpu.find()
    if isinstance(found, str):
        raise BackendError(f"no GPU to build for ({found}): use --check, or build for another GPU with --gpu SM86")
    if builder.builds_without_gpu(trt):
        return found.sm
    return f"{found.name} ({found.sm}, {found.multiprocessors} multiprocessors)"


def origin(trt: Any, bundle: Bundle, component: str, sizes: PlanSizes, gpu: str) -> dict[str, Any]:
    """Everything that a component's plan depends on: TensorRT, GPU, graph, weights and sizes."""
    files = bundle.manifest.files or {}
    graph = bundle.graph(component)
    text = graph.read_bytes()  # contains the names of its data files
    data = {name: entry.sha256 for name, entry in files.items() if name.encode() in text}
    data[graph.name] = hashlib.sha256(text).hexdigest()  # of the actual file, which may differ from the manifest
    place = {"graph": str(graph.resolve())} if builder.opens_graphs(trt) else {}
    return {
        **place,
        "tensorrt": builder.identity(trt),
        "gpu": gpu,
        "files": data,
        "options": asdict(sizes),
        "profiles": [{name: list(each) for name, each in axes.items()} for axes in profiles(bundle, component, sizes)],
    }


def check(trt: Any, bundle: Bundle, sizes: PlanSizes, gpus: tuple[str, ...], report: Report) -> list[str]:
    """Parse and build every graph for `gpus` without storing the plans. Return one error for each graph that fails."""
    faults = []
    for component in bundle.manifest.components:
        report(f"{component}: building for {', '.join(gpus) or 'this GPU'}")
        try:
            settings = Settings(gpus, sizes.workspace)
            axes = profiles(bundle, component, sizes)
            plan = builder.build(trt, bundle.checked_graph(component), axes, settings).nbytes
        except (BackendError, BundleError) as error:
            faults.append(f"{component}: {error}")
            continue
        report(f"{component}: a plan of {plan / 1e6:.1f} MB")
    return faults


def ensure(
    trt: Any,
    bundle: Bundle,
    component: str,
    sizes: PlanSizes,
    device: str,
    cache: PlanCache,
    report: Report,
    *,
    check_plan: CheckPlan | None = None,
    accept: bool = False,
    progress: builder.Progress | None = None,
) -> Path:
    """Return the component's plan for `device` from the cache, building it if it is missing or stale.

    device: "SM86" for tensorrt_rtx; for tensorrt this machine's card, the only one that it can build for.
    check_plan: checks a plan that has not been checked; its findings go into the plan's metadata. None leaves the
    check to the next caller. accept: use the plan without a check, even if a check has failed.
    Raises BackendError for a plan that fails its check.
    """
    source, axes = origin(trt, bundle, component, sizes, device), profiles(bundle, component, sizes)
    plan = cache.find(component, source)
    if plan is None:
        report(f"{component}: building for {device}")
        gpus = (device,) if builder.builds_without_gpu(trt) else ()
        settings = Settings(gpus, sizes.workspace)
        try:
            built = builder.build(trt, bundle.checked_graph(component), axes, settings, progress)
        except BackendError as error:
            raise BackendError(f"{component}: {error}") from error
        plan = cache.store(component, source, built)
        report(f"{component}: {plan}, {built.nbytes / 1e6:.1f} MB")
        del built  # frees a plan as large as the weights
    else:
        if builder.opens_graphs(trt):
            bundle.checked_graph(component)
        report(f"{component}: {plan}")
    tested = cache.metadata(plan).get("tested")
    if accept and (tested is None or "wrong" in tested):
        tested = {"left out": "accepted without a test"}
        cache.update_metadata(plan, tested=tested)
    elif tested is None and check_plan is not None:
        tested = check_plan(component, plan, bundle.checked_graph(component), axes)
        if not tested.get("again", False):
            with contextlib.suppress(BackendError):  # in a read-only folder the plan is tested at every load
                cache.update_metadata(plan, tested=tested)
    if tested is None:
        report(f"{component}: not tested yet: the first load tests it")
    elif "wrong" in tested:
        raise BackendError(
            f"{component}: the plan's results differ from the graph's: {tested['wrong']} (TensorRT before 10.8 may "
            f"build wrong plans with two profiles): use another TensorRT or precision and delete {plan}, or accept "
            "the plan with blip2rt-build --no-test"
        )
    elif "left out" in tested:
        report(f"{component}: not tested: {tested['left out']}")
    return plan
