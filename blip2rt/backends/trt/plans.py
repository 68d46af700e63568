"""A bundle of the target trt -> the engines of its components: sizes of their free axes, memory, building, the cache.

Knows bundles and what their graphs are run with; TensorRT itself is trt_builder's affair.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ... import bundle as contract
from ...bundle import Bundle
from ...bundle.manifest import LlmSpec
from ...errors import BackendError, OptionError
from . import builder, gpu
from .builder import Axes, Settings
from .cache import EngineCache

_BUILD_COPIES = 3  # of an engine's weights while it is built: the parsed graph, the builder's own, the plan
_POSITIONS = 256  # capacity of the cache unless asked otherwise: prefix, prompt and answer of captions and questions
# Where a tensor lies in a data file, as ONNX's external_data has it: offset and length in decimal digits.
_EXTERNAL = re.compile(rb"\n\x06offset\x12.(\d+)j.\n\x06length\x12.(\d+)", re.DOTALL)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What engines are made for; other sizes need other engines."""

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
    cache: int
    largest: int  # weights of the largest engine

    @property
    def building(self) -> int:
        """One engine at a time is built, the largest decides."""
        return _BUILD_COPIES * self.largest


def check_target(bundle: Bundle) -> None:
    """Raises BackendError: the bundle's graphs are not for TensorRT."""
    if bundle.manifest.target != "trt":
        raise BackendError(
            f"{bundle.path} was exported for {bundle.manifest.target}: export it with blip2rt-export --target trt"
        )


def check_precision(bundle: Bundle, wanted: Mapping[str, str]) -> None:
    """Raises OptionError: components that the bundle lacks, or has in another precision than `wanted`."""
    components, faults = bundle.manifest.components, []
    for name, precision in wanted.items():
        if name not in components:
            faults.append(f"{name!r}: the bundle has {', '.join(components)}")
        elif components[name].precision not in (precision, f"{precision}-static"):
            faults.append(f"{name} is {components[name].precision}, not {precision}: graphs get their precision from "
                          f"blip2rt-export --target trt --precision")  # fmt: skip
    if faults:
        raise OptionError(f"--precision: {'; '.join(faults)}")


def resolve(bundle: Bundle, options: Options) -> Options:
    """`options` with a capacity. Raises OptionError: all that makes no sense for the bundle, at once."""
    llm, faults = bundle.manifest.llm, []
    for name in ("max_batch", "max_beams"):
        value = getattr(options, name)
        if not 1 <= value <= 64:
            faults.append(f"{name} is {value}: give 1 to 64")
    if options.workspace is not None and options.workspace < 1:
        faults.append(f"workspace is {options.workspace}: give a number of bytes above 0")
    capacity = options.capacity
    if llm is not None:
        least = llm.prefix_length + 2
        capacity = min(_POSITIONS, llm.max_positions) if capacity is None else capacity
        if not least <= capacity <= llm.max_positions:
            faults.append(f"capacity is {capacity}: give {least} to {llm.max_positions:,} positions for this bundle")
    if faults:
        raise OptionError("; ".join(faults))
    return replace(options, capacity=capacity)


def profiles(bundle: Bundle, component: str, options: Options) -> list[Axes]:
    """Sizes of a component's free axes: least, usual, largest. The llm has two: a step of one position, a prompt."""
    manifest = bundle.manifest
    rows = options.max_batch * options.max_beams
    if component in (contract.LLM, contract.ENCODER, contract.EMBED):
        llm, capacity = manifest.llm, options.capacity
        assert llm is not None and capacity is not None
        usual = min(llm.prefix_length + 8, capacity)
        prompt = (1, 1 if llm.encoder_decoder else usual, capacity)
        seen = (1, usual, capacity)
        if component == contract.ENCODER:
            return [{"B": _upto(options.max_batch), "S": seen}]
        if component == contract.EMBED:
            return [{"B": _upto(rows), "S": (1, 1, capacity)}]
        fixed: dict[str, tuple[int, int, int]] = {"B": _upto(rows), "T": (capacity,) * 3, "S_enc": seen}
        return [{**fixed, "S": (1, 1, 1)}, {**fixed, "S": prompt}]
    texts = [spec.max_text_length for spec in (manifest.retrieval, manifest.question) if spec is not None]
    longest = max(texts, default=1)
    return [{"B": _upto(options.max_batch), "L": (1, min(16, longest), longest)}]


def _upto(rows: int) -> tuple[int, int, int]:
    return 1, rows, rows


def estimate(bundle: Bundle, options: Options) -> Estimate:
    """Weights of every engine, and keys and values of every row; scratch memory comes to that.

    Weights that two graphs share in a file are counted for both: each engine has its own.
    """
    sizes = [_weights(bundle.graph(component)) for component in bundle.manifest.components]
    llm, cache = bundle.manifest.llm, 0
    if llm is not None:
        cache = options.max_batch * options.max_beams * _position_bytes(bundle, llm) * (options.capacity or 0)
    return Estimate(sum(sizes), cache, max(sizes))


def _weights(graph: Path) -> int:
    """Bytes of a graph and of its tensors in data files."""
    text = graph.read_bytes()
    return len(text) + sum(int(length) for _, length in set(_EXTERNAL.findall(text)))


def _position_bytes(bundle: Bundle, llm: LlmSpec) -> int:
    """Keys and values of a position and row; an encoder-decoder holds as much again of what it saw."""
    tensor = next(each for each in bundle.manifest.components[contract.LLM].inputs if each.name.startswith("past_key_"))
    caches = 2 if llm.encoder_decoder else 1
    return caches * 2 * llm.layers * llm.kv_heads * llm.head_dim * np.dtype(tensor.dtype).itemsize


def this_gpu(trt: Any) -> str:
    """How a plan is keyed: tensorrt chooses kernels by time, so that one is of a card (all Jetson Orins have the same
    name, not the same number of multiprocessors); tensorrt_rtx's is of a kind. Raises BackendError: there is none."""
    found = gpu.find()
    if isinstance(found, str):
        raise BackendError(f"there is no GPU to build for: {found}; --check needs none, --gpu SM86 builds for another")
    if builder.builds_for_any(trt):
        return found.sm
    return f"{found.name} ({found.sm}, {found.multiprocessors} multiprocessors)"


def origin(trt: Any, bundle: Bundle, component: str, options: Options, gpu: str) -> dict[str, Any]:
    """Everything that the plan of a component depends on: TensorRT, GPU, graph and weights, sizes."""
    files = bundle.manifest.files or {}
    graph = bundle.graph(component)
    text = graph.read_bytes()  # names the files that its weights are in
    data = {name: entry.sha256 for name, entry in files.items() if name.encode() in text}
    data[graph.name] = hashlib.sha256(text).hexdigest()  # of the file itself, should someone have changed it
    return {
        "tensorrt": builder.identity(trt),
        "gpu": gpu,
        "files": data,
        "options": asdict(options),
        "profiles": [
            {name: list(sizes) for name, sizes in axes.items()} for axes in profiles(bundle, component, options)
        ],
    }


def check(trt: Any, bundle: Bundle, options: Options, gpus: tuple[str, ...], say: Say) -> list[str]:
    """Parse and build every graph for `gpus`, keep nothing; the faults, one a graph."""
    faults = []
    for component in bundle.manifest.components:
        say(f"{component}: building for {', '.join(gpus) or 'this GPU'}")
        try:
            settings = Settings(gpus, options.workspace)
            sizes = profiles(bundle, component, options)
            plan = builder.build(trt, bundle.graph(component), sizes, settings).plan.nbytes
        except BackendError as error:
            faults.append(f"{component}: {error}")
            continue
        say(f"{component}: a plan of {plan / 1e6:.1f} MB")
    return faults


def ensure(
    trt: Any, bundle: Bundle, component: str, options: Options, device: str, cache: EngineCache, say: Say,
    *, timing_cache: Path | None = None, progress: Callable[[str, int, int], None] | None = None,
) -> Path:  # fmt: skip
    """The component's plan for `device` in `cache`, built first where it is missing, stale or of another machine.

    `device`: "SM86" for tensorrt_rtx; for tensorrt the name of the card that is there, the only one it builds for.
    """
    source = origin(trt, bundle, component, options, device)
    plan = cache.find(component, source)
    if plan is not None:
        say(f"{component}: {plan}")
        return plan
    say(f"{component}: building for {device}")
    gpus = (device,) if builder.builds_for_any(trt) else ()
    settings = Settings(gpus, options.workspace, _read_timing(timing_cache))
    try:
        built = builder.build(trt, bundle.graph(component), profiles(bundle, component, options), settings, progress)
    except BackendError as error:
        raise BackendError(f"{component}: {error}") from error
    plan = cache.store(component, source, built.plan)
    if timing_cache is not None and built.timing_cache is not None:
        _write_timing(timing_cache, built.timing_cache)
    say(f"{component}: {plan}, {built.plan.nbytes / 1e6:.1f} MB")
    return plan


def _read_timing(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise BackendError(f"cannot read the timing cache {path}: {error.strerror or error}") from error


def _write_timing(path: Path, data: bytes) -> None:
    from .cache import write_atomically

    try:
        write_atomically(path, data)
    except OSError as error:
        raise BackendError(f"cannot write the timing cache {path}: {error.strerror or error}") from error
