"""Plans for the components of a bundle of the target trt: optimization profiles, memory estimates, building, caching.

builder.py does what concerns TensorRT itself. The component `embed` has no plan: the CPU runs it.
"""

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...bundle import CROSS_KEY, EMBED, ENCODER, LLM, PAST_KEY, Bundle
from ...errors import BackendError, BundleError, OptionError
from . import builder, gpu
from .builder import Axes, Settings
from .cache import PlanCache
from .runner import ALIGNMENT

_BUILD_COPIES = 3  # of a plan's weights during a build: the parsed graph, the builder's copy, the plan
_CONTEXT_BYTES = 500 << 20  # CUDA's context and libraries: an allowance, not measured on a GPU
_DEFAULT_CAPACITY = 256  # cache positions for prefix, prompt and answer of captions and questions
# A tensor's place in a data file, as in ONNX's external_data: offset and length in decimal digits.
_EXTERNAL = re.compile(rb"\n\x06offset\x12.(\d+)j.\n\x06length\x12.(\d+)", re.DOTALL)
Report = Callable[[str], None]


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
    cache: int  # keys and values of one call at a time, or of a batch that callers share
    largest: int  # weights of the largest plan

    @property
    def running(self) -> int:
        """Bytes needed to run one generation at a time, from pixels to tokens."""
        return self.weights + self.cache + _CONTEXT_BYTES

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


def components(bundle: Bundle) -> list[str]:
    """The components that have plans."""
    return [component for component in bundle.manifest.components if component != EMBED]


def resolve(bundle: Bundle, sizes: PlanSizes) -> PlanSizes:
    """Fill in the default capacity, so that TensorRT can address every row. Raises OptionError with every fault."""
    llm, faults = bundle.manifest.llm, []
    for name in ("max_batch", "max_beams"):
        value = getattr(sizes, name)
        if not 1 <= value <= 64:
            faults.append(f"{name} is {value}: give 1 to 64")
    if sizes.workspace is not None and sizes.workspace < 1:
        faults.append(f"workspace is {sizes.workspace}: give a number of bytes above 0")
    capacity = sizes.capacity
    if llm is not None:
        unit = math.lcm(*(ALIGNMENT // math.gcd(ALIGNMENT, bytes_) for bytes_ in _position_bytes(bundle)))
        minimum = llm.prefix_length + 2
        capacity = min(_DEFAULT_CAPACITY, llm.max_positions) if capacity is None else capacity
        if not minimum <= capacity <= llm.max_positions:
            faults.append(f"capacity is {capacity}: give {minimum} to {llm.max_positions:,} positions for this bundle")
        capacity = -(-capacity // unit) * unit
        capacity -= unit if minimum + unit <= capacity > llm.max_positions else 0
    if faults:
        raise OptionError("; ".join(faults))
    return replace(sizes, capacity=capacity)


def profiles(bundle: Bundle, component: str, sizes: PlanSizes) -> list[Axes]:
    """The optimization profiles of a component. llm has two: a step and a prompt, which is read by itself."""
    manifest, batch = bundle.manifest, (1, sizes.max_batch, sizes.max_batch)
    if component in (LLM, ENCODER):
        llm, capacity = manifest.llm, sizes.capacity
        assert llm is not None and capacity is not None
        rows, optimum = sizes.max_batch * sizes.max_beams, min(llm.prefix_length + 8, capacity)
        if component == ENCODER:
            return [{"B": (1, 1, 1), "S": (1, optimum, capacity)}]
        fixed = {"T": (capacity,) * 3, "S_enc": (capacity,) * 3}
        prompt = (1, 1 if llm.encoder_decoder else optimum, capacity)
        return [{**fixed, "B": (1, rows, rows), "S": (1, 1, 1)}, {**fixed, "B": (1, 1, 1), "S": prompt}]
    texts = [spec.max_text_length for spec in (manifest.retrieval, manifest.question) if spec is not None]
    longest = max(texts, default=1)
    return [{"B": batch, "L": (1, min(16, longest), longest)}]


def estimate(bundle: Bundle, sizes: PlanSizes) -> Estimate:
    """Estimate the device memory of all plans and of a generation of the largest size.

    Weights that two graphs share in a file count twice, since each plan has its own copy.
    """
    weights = [graph_bytes(bundle.graph(component)) for component in components(bundle)]
    cache = 0
    if bundle.manifest.llm is not None:
        capacity, rows = sizes.capacity or 0, sizes.max_batch * sizes.max_beams
        tensors = 2 * bundle.manifest.llm.layers
        # What a run returns has a copy of its own: one position of every row, or all positions of one.
        cache = sum(tensors * each * (rows * capacity + max(rows, capacity)) for each in _position_bytes(bundle))
    return Estimate(sum(weights), cache, max(weights))


def _position_bytes(bundle: Bundle) -> list[int]:
    """Bytes of a position of the keys of a layer; of an encoder-decoder, of its keys of the encoder's output, too."""
    ports = {port.name: port for port in bundle.manifest.components[LLM].inputs}
    names = [name.format(0) for name in (PAST_KEY, CROSS_KEY) if name.format(0) in ports]
    heads = [(ports[name].shape[1], ports[name].shape[3], np.dtype(ports[name].dtype).itemsize) for name in names]
    return [int(count) * int(width) * size for count, width, size in heads]


def graph_bytes(graph: Path) -> int:
    """Bytes of a graph's file and of its external tensors, counting shared data once for each tensor."""
    text = graph.read_bytes()
    return len(text) + sum(int(length) for _, length in _EXTERNAL.findall(text))


def this_gpu() -> str:
    """This machine's GPU as it appears in a plan's origin. Raises BackendError if there is none.

    tensorrt times kernels, so its plan suits one card; Jetson Orins of the same name differ in their number of
    multiprocessors.
    """
    found = gpu.find()
    if isinstance(found, str):
        raise BackendError(f"no GPU to build for ({found}): check the graphs with blip2rt-build --check")
    return f"{found.name} ({found.sm}, {found.multiprocessors} multiprocessors)"


def origin(trt: Any, bundle: Bundle, component: str, sizes: PlanSizes, gpu: str) -> dict[str, Any]:
    """Everything that a component's plan depends on: TensorRT, GPU, graph, weights and sizes."""
    files = bundle.manifest.files or {}
    graph = bundle.graph(component)
    text = graph.read_bytes()  # contains the names of its data files
    data = {name: entry.sha256 for name, entry in files.items() if name.encode() in text}
    data[graph.name] = hashlib.sha256(text).hexdigest()  # of the actual file, which may differ from the manifest
    return {
        "tensorrt": builder.identity(trt),
        "gpu": gpu,
        "files": data,
        "options": asdict(sizes),
        "profiles": [{name: list(each) for name, each in axes.items()} for axes in profiles(bundle, component, sizes)],
    }


def check(trt: Any, bundle: Bundle, sizes: PlanSizes, gpus: tuple[str, ...], report: Report) -> list[str]:
    """Parse and build every graph for `gpus` without storing the plans. Return one error for each graph that fails."""
    faults = []
    for component in components(bundle):
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
    trt: Any, bundle: Bundle, component: str, sizes: PlanSizes, device: str, cache: PlanCache, report: Report
) -> Path:
    """Return the component's plan for `device`, see this_gpu(), from the cache. Build it if it is missing or stale."""
    source, axes = origin(trt, bundle, component, sizes, device), profiles(bundle, component, sizes)
    plan = cache.find(component, source)
    if plan is None:
        report(f"{component}: building for {device}")
        settings = Settings((), sizes.workspace)
        try:
            built = builder.build(trt, bundle.checked_graph(component), axes, settings)
        except BackendError as error:
            raise BackendError(f"{component}: {error}") from error
        plan = cache.store(component, source, built)
        report(f"{component}: {plan}, {built.nbytes / 1e6:.1f} MB")
    else:
        report(f"{component}: {plan}")
    return plan
