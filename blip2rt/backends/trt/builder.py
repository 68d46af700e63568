"""Builds a plan (TensorRT's serialized engine) from an ONNX graph: parse, add profiles, build.

`tensorrt` builds for this machine's GPU. `tensorrt_rtx` builds for any GPU, without one: it checks graphs.
Graphs are strongly typed: their tensors, not builder flags, decide what is float16, int8 or float32.
"""

import importlib
import logging
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import BackendError

Axes = Mapping[str, tuple[int, int, int]]  # dynamic axis -> its minimum, optimum and maximum
_OLDEST = (10, 3)  # JetPack 6.2
_NO_CUDA = "catchCudaError"
_log = logging.getLogger("blip2rt")


@dataclass(frozen=True)
class Settings:
    """How plans are built, for any graph."""

    gpus: tuple[str, ...] = ()  # compute capabilities to build for, e.g. "SM86" (tensorrt_rtx only); (): this machine's
    workspace: int | None = None  # maximum scratch memory of a layer in bytes; None: TensorRT's choice


def load_tensorrt(name: str = "tensorrt") -> Any:
    """Import TensorRT, or tensorrt_rtx, which only builds. Raises BackendError if it is missing, old or broken."""
    try:
        trt = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise BackendError(
                f"{name} is installed but lacks {error.name}: pip install --force-reinstall {name}"
            ) from error
        raise BackendError(
            f"{name} is not installed: on Jetson it comes with JetPack; elsewhere pip install {name.replace('_', '-')}"
        ) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendError(f"{name} is installed but cannot be loaded: {error}") from error
    version = tuple(int(part) for part in str(trt.__version__).split(".")[:2])
    if name == "tensorrt" and version < _OLDEST:
        raise BackendError(f"TensorRT {trt.__version__} is older than 10.3: update JetPack, or pip install tensorrt")
    return trt


def identity(trt: Any) -> str:
    """Name and version of TensorRT. Only the version that built a plan can load it."""
    return f"{trt.__name__} {trt.__version__}"


def build(trt: Any, graph: Path, profiles: Sequence[Axes], settings: Settings = Settings()) -> memoryview:
    """Build a plan, in TensorRT's own memory.

    profiles: each gives the sizes of the graph's dynamic axes by name.

    Ctrl-C ends the build at its next step. Raises BackendError that lists the parser's errors with their nodes, an axis
    missing from the profiles, or the builder's last error.
    """
    stop = threading.Event()
    return _interruptible(lambda: _build(trt, graph, profiles, settings, stop), stop)


def _interruptible(work: Callable[[], memoryview], stop: threading.Event) -> memoryview:
    """Run `work` in a thread. If this thread is interrupted, set `stop` and wait for the work to end.

    TensorRT's calls take minutes, and Python handles Ctrl-C in the main thread only, after they return.
    """
    built: Future[memoryview] = Future()

    def run() -> None:
        try:
            built.set_result(work())
        except BaseException as error:
            # Leave no TensorRT object to the garbage collector: it may run inside our logger, within a TensorRT call
            # that holds a lock, and destroying a builder waits for the same lock.
            traceback.clear_frames(error.__traceback__)
            built.set_exception(error)

    thread = threading.Thread(target=run, name="blip2rt-build", daemon=True)
    try:
        thread.start()
        while not wait([built], 0.5).done:
            pass
    except BaseException:
        stop.set()
        if thread.ident is not None:
            wait([built])  # an interrupted join() may lose track of its thread
        raise
    return built.result()


def _build(trt: Any, graph: Path, profiles: Sequence[Axes], settings: Settings, stop: threading.Event) -> memoryview:
    log = logger(trt)
    builder = create(log, trt.Builder)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        raise BackendError("; ".join(_parser_faults(parser)) or f"the parser rejects the graph: {log.last}")
    config = builder.create_builder_config()
    _configure(trt, config, settings)
    for axes in profiles:
        _add_profile(builder, config, network, axes, log)
    monitor = _monitor(trt, stop)  # TensorRT does not keep it alive
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(f"the build failed: {log.last or 'TensorRT gives no reason'}")
    return memoryview(plan)  # a copy would double the weights


def create(log: Any, kind: Any) -> Any:
    """Create TensorRT's builder or runtime. Raises BackendError with the reason, which TensorRT's exceptions omit."""
    try:
        return kind(log)
    except (TypeError, RuntimeError) as error:
        raise BackendError(f"TensorRT cannot start: {log.last or error}: run blip2rt doctor") from error


def _parser_faults(parser: Any) -> list[str]:
    faults = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        name, operator = error.node_name() or error.node(), error.node_operator()
        node = f"node {name} ({operator}): " if operator else ""  # a file that is not a graph has no nodes
        faults.append(node + _plain(error.desc()))
    return faults


def _plain(message: str) -> str:
    """One line, without the CUDA error that the builder adds to every message if there is no GPU."""
    return " ".join(" ".join(line for line in message.splitlines() if _NO_CUDA not in line).split())


def _configure(trt: Any, config: Any, settings: Settings) -> None:
    if settings.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace)
    if not settings.gpus:
        return
    supported = _compute_capabilities(trt)
    unknown = [name for name in settings.gpus if name not in supported]
    if unknown:
        raise BackendError(f"{identity(trt)} does not support {', '.join(unknown)}: choose from {', '.join(supported)}")
    config.num_compute_capabilities = len(settings.gpus)
    for index, name in enumerate(settings.gpus):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), index)


def _compute_capabilities(trt: Any) -> list[str]:
    """The compute capabilities that tensorrt_rtx builds for."""
    return [name for name in dir(trt.ComputeCapability) if name.startswith("SM")]


def _add_profile(builder: Any, config: Any, network: Any, axes: Axes, log: Any) -> None:
    profile, dynamic, missing = builder.create_optimization_profile(), False, set()
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
            dynamic = True
    if missing:
        raise BackendError(f"the profile gives no size for the axis {', '.join(sorted(missing))}")
    if dynamic and config.add_optimization_profile(profile) < 0:
        raise BackendError(f"TensorRT rejects the sizes {dict(axes)}: {log.last or 'it gives no reason'}")


def logger(trt: Any) -> Any:
    """A TensorRT logger that passes messages to our log at level debug and keeps the last error for exceptions."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.last = _plain(message) or self.last
            _log.debug("%s: %s", trt.__name__, message)

        def reason(self) -> str:
            """The last error in parentheses, to end a message with; then forget it."""
            last, self.last = self.last, ""
            return f" ({last})" if last else ""

    return Log()


def _monitor(trt: Any, stop: threading.Event) -> Any:
    """A TensorRT progress monitor that ends the build once `stop` is set. TensorRT calls it from its own threads."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            pass

        def step_complete(self, phase_name: str, step: int) -> bool:
            return not stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()
