"""An ONNX graph -> a plan (TensorRT's serialized engine): parse, profiles, build.

One code for both of NVIDIA's modules: `tensorrt` builds for the GPU that is there, `tensorrt_rtx` for any, without one.
Graphs are strongly typed: their tensors say what is float16, int8 or float32, and no builder flag does.
Knows TensorRT's builder and parser, nothing about bundles, caches or running a plan.
"""

from __future__ import annotations

import importlib
import logging
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ... import onnx_protobuf
from ...errors import BackendError
from ...install_hints import ONNXRUNTIME_GPU
from . import by_onnxruntime

MODULES = ("tensorrt", "tensorrt_rtx")
_WRITES = b"TensorScatter"  # the operator that becomes a layer which writes a cache, and wants to know its length
Axes = Mapping[str, tuple[int, int, int]]  # a free axis -> its least, usual and largest size
_NO_CUDA = "catchCudaError"
_log = logging.getLogger("blip2rt")


class Unsuitable(BackendError):
    """TensorRT is not installed, or does not know the GPU."""


@dataclass(frozen=True)
class Settings:
    """How plans are built, whatever the graph."""

    gpus: tuple[str, ...] = ()  # compute capabilities to build for, e.g. "SM86"; tensorrt_rtx only; (): what is there
    workspace: int | None = None  # bytes of scratch memory that a layer may take; None: TensorRT's choice
    timing_cache: bytes | None = None  # measured times of kernels, from an earlier build


@dataclass
class Built:
    """A plan, and what was measured on the way."""

    plan: memoryview  # of TensorRT's own memory: a copy would be another of the weights
    timing_cache: bytes | None = None
    faults: list[str] = field(default_factory=list)


def load_tensorrt(name: str | None = None) -> Any:
    """The module `name`, or the first of MODULES that is installed. Raises BackendError for a missing or broken one."""
    for each in MODULES if name is None else (name,):
        try:
            return importlib.import_module(each)
        except ModuleNotFoundError as error:
            if error.name != each:
                raise BackendError(
                    f"{each} is installed but lacks {error.name}: pip install --force-reinstall {each}"
                ) from error
        except (ImportError, OSError, RuntimeError) as error:
            raise BackendError(f"{each} is installed but cannot be loaded: {error}") from error
    wanted = " or ".join(MODULES if name is None else (name,))
    raise Unsuitable(
        f"{wanted} is not installed: on Jetson it comes with JetPack (docs/jetson.md); elsewhere pip install tensorrt, "
        f"or tensorrt-rtx for GeForce and RTX; to do without, {ONNXRUNTIME_GPU}"
    )


def load_for(sm: str | None) -> Any:
    """TensorRT, if it builds for GPUs of the compute capability `sm`, e.g. "SM86"; None: any. Raises BackendError."""
    trt = load_tensorrt()
    if sm is not None and builds_for_any(trt) and sm not in _known(trt):
        raise Unsuitable(f"{identity(trt)} does not know {sm}, this machine's GPU: pip install tensorrt; to do "
                         f"without, {ONNXRUNTIME_GPU}")  # fmt: skip
    return trt


def load_runner(sm: str | None) -> Any:
    """TensorRT, or what runs graphs in its place where none that is installed builds for `sm`. Raises BackendError."""
    try:
        return load_for(sm)
    except Unsuitable as error:
        instead = by_onnxruntime.find()
        if instead is None:
            raise
        _log.warning("ONNX Runtime's CUDA provider runs the graphs in TensorRT's place: %s", error)
        return instead


def builds_for_any(trt: Any) -> bool:
    """Whether the module builds for GPUs that are not there. tensorrt itself measures on the one that is."""
    return bool(trt.__name__ == "tensorrt_rtx")


def opens_graphs(trt: Any) -> bool:
    """Whether a plan only names its graph, which is opened with it. TensorRT's own plans hold all that they need."""
    return bool(getattr(trt, "opens_graphs", False))


def identity(trt: Any) -> str:
    """Name and version of TensorRT: only the one that built a plan loads it."""
    return f"{trt.__name__} {trt.__version__}"


def build(
    trt: Any, graph: Path, profiles: Sequence[Axes], settings: Settings = Settings(),
    progress: Callable[[str, int, int], None] | None = None,
) -> Built:  # fmt: skip
    """Build a plan with `profiles`, each the sizes of the graph's free axes by name.

    progress(phase, done, total) is told of TensorRT's phases. Ctrl-C ends the build at its next step. Raises
    BackendError that names every fault of the parser with its node, an axis that no profile names, or what the builder
    said when it gave up.
    """
    stop = threading.Event()
    return _interruptible(lambda: _build(trt, graph, profiles, settings, progress, stop), stop)


def _interruptible(work: Callable[[], Built], stop: threading.Event) -> Built:
    """Do `work` in a thread of its own. Where this one is interrupted, set `stop` and wait for the work to end.

    TensorRT's calls take minutes. Python hears Ctrl-C in the main thread alone, and not before they return.
    """
    done: list[Built] = []
    failed: list[BaseException] = []
    ended = threading.Event()  # an interrupted join may forget its thread

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            # Nothing of TensorRT's is left to the garbage collector: it may run within our log, in a call of TensorRT
            # that holds a lock, and a builder's end waits for the same lock.
            traceback.clear_frames(error.__traceback__)
            failed.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=run, name="blip2rt-build", daemon=True)
    try:
        thread.start()
        while not ended.wait(0.5):
            pass
    except BaseException:
        stop.set()
        if thread.ident is not None:
            ended.wait()
        raise
    if failed:
        raise failed[0]
    return done[0]


def _build(
    trt: Any, graph: Path, profiles: Sequence[Axes], settings: Settings,
    progress: Callable[[str, int, int], None] | None, stop: threading.Event,
) -> Built:  # fmt: skip
    log = logger(trt)
    builder = made(log, trt.Builder)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, log)
    if not _parsed(parser, graph, profiles):
        raise BackendError("; ".join(_parser_faults(parser)) or f"the parser refuses it: {log.last}")
    config = builder.create_builder_config()
    _configure(trt, config, settings)
    for axes in profiles:
        _add_profile(builder, config, network, axes, log)
    monitor = _monitor(trt, progress, stop)  # TensorRT does not keep it alive
    config.progress_monitor = monitor
    cache = _use_timing_cache(config, settings.timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(f"the builder gives up: {log.last or 'it does not say why'}")
    return Built(memoryview(plan), None if cache is None else bytes(cache.serialize()))


def _parsed(parser: Any, graph: Path, profiles: Sequence[Axes]) -> bool:
    """Whether the parser takes the graph. Axes of one size are fixed where a layer that writes a cache wants that."""
    model = graph.read_bytes()
    if _WRITES not in model:
        return bool(parser.parse_from_file(str(graph)))
    sizes = {
        name: usual for name, (_, usual, _) in profiles[0].items()
        if all(axes.get(name) == (usual,) * 3 for axes in profiles)
    }  # fmt: skip
    return bool(parser.parse(onnx_protobuf.with_sizes(model, sizes), str(graph)))


def made(log: Any, kind: Any) -> Any:
    """TensorRT's builder or runtime. Raises BackendError with TensorRT's own reason, which its exceptions leave out."""
    try:
        return kind(log)
    except (TypeError, RuntimeError) as error:
        raise BackendError(f"TensorRT cannot begin: {log.last or error}; see blip2rt doctor") from error


def _parser_faults(parser: Any) -> list[str]:
    faults = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        name, operator = error.node_name() or error.node(), error.node_operator()
        node = f"node {name} ({operator}): " if operator else ""  # a file that is no graph has no node to blame
        faults.append(node + _plain(error.desc()))
    return faults


def _plain(message: str) -> str:
    """One line, without the complaint about CUDA that the builder adds to every error where there is no GPU."""
    return " ".join(" ".join(line for line in message.splitlines() if _NO_CUDA not in line).split())


def _configure(trt: Any, config: Any, settings: Settings) -> None:
    # tensorrt-rtx: a context that allocates while it runs could not be captured in a CUDA graph.
    whole = getattr(getattr(trt, "BuilderFlag", None), "REQUIRE_USER_ALLOCATION", None)
    if whole is not None:
        config.set_flag(whole)
    if settings.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace)
    if not settings.gpus:
        return
    known = _known(trt)
    unknown = [name for name in settings.gpus if name not in known]
    if unknown:
        raise BackendError(f"{identity(trt)} does not know {', '.join(unknown)}: choose from {', '.join(known)}")
    config.num_compute_capabilities = len(settings.gpus)
    for index, name in enumerate(settings.gpus):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), index)


def _known(trt: Any) -> list[str]:
    """The compute capabilities that tensorrt_rtx builds for."""
    return [name for name in dir(trt.ComputeCapability) if name.startswith("SM")]


def _add_profile(builder: Any, config: Any, network: Any, axes: Axes, log: Any) -> None:
    profile, free, missing = builder.create_optimization_profile(), False, set()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        sizes = []
        for axis, size in enumerate(tensor.shape):
            name = tensor.get_dimension_name(axis) if size < 0 else ""
            if size < 0 and name not in axes:
                missing.add(f"{name or axis} of {tensor.name}")
            sizes.append(axes.get(name, (size,) * 3) if size < 0 else (size,) * 3)
        if -1 in tuple(tensor.shape) and not missing:
            profile.set_shape(tensor.name, *(tuple(each) for each in zip(*sizes, strict=True)))
            free = True
    if missing:
        raise BackendError(f"no size is known for the axis {', '.join(sorted(missing))}")
    if free and config.add_optimization_profile(profile) < 0:
        raise BackendError(f"the builder refuses the sizes {dict(axes)}: {log.last or 'it does not say why'}")


def _use_timing_cache(config: Any, data: bytes | None) -> Any:
    if data is None:
        return None
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        _log.warning("the timing cache is of another TensorRT or GPU and starts anew")
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def logger(trt: Any) -> Any:
    """TensorRT's logger: passes messages to our log at the level debug, and keeps the last error, to be raised."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.last = _plain(message) or self.last
            _log.debug("%s: %s", trt.__name__, message)

        def because(self) -> str:
            """The last error as the end of a sentence, once."""
            last, self.last = self.last, ""
            return f" ({last})" if last else ""

    return Log()


def _monitor(trt: Any, progress: Callable[[str, int, int], None] | None, stop: threading.Event) -> Any:
    """TensorRT's monitor of progress, which ends the build once `stop` is set. TensorRT calls it from its own
    threads."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()
            self.totals: dict[str, int] = {}
            self.lock = threading.Lock()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self.lock:
                self.totals[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            if progress is not None and not stop.is_set():
                with self.lock:
                    progress(phase_name, step + 1, self.totals.get(phase_name, 0))
            return not stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            with self.lock:
                self.totals.pop(phase_name, None)

    return Monitor()
