"""Lets ONNX Runtime's CUDA provider replace TensorRT: implements the part of the `tensorrt` API that this backend uses.

If onnxruntime-gpu is installed but TensorRT is not, the device loop still runs, with a CUDA graph per step if ONNX
Runtime allows the capture. Each lane has its own sessions and its own copy of the weights.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ...bundle import TensorInfo
from ...native import native
from . import cuda_libraries

CUDA = "CUDAExecutionProvider"
_KINDS = {
    "float32": ("FLOAT", np.float32),
    "float16": ("HALF", np.float16),
    "int32": ("INT32", np.int32),
    "int64": ("INT64", np.int64),
}
_log = logging.getLogger("blip2rt")


def find() -> Executor | None:
    """The replacement for TensorRT; None if ONNX Runtime has no CUDA provider."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    cuda_libraries.preload()
    onnxruntime = importlib.import_module("onnxruntime")
    return Executor(onnxruntime, CUDA) if CUDA in onnxruntime.get_available_providers() else None


class Executor:
    """Takes the place of the module `tensorrt`."""

    __name__ = "onnxruntime"
    opens_graphs = True  # a plan refers to its graph's file
    TensorIOMode = SimpleNamespace(INPUT="INPUT", OUTPUT="OUTPUT")
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="USER_MANAGED")
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    MemoryPoolType = SimpleNamespace(WORKSPACE="WORKSPACE")

    class ILogger:
        ERROR = 1

    class IProgressMonitor:
        pass

    def __init__(self, onnxruntime: Any, provider: str) -> None:
        """provider: CUDA, or the CPU's for tests whose simulated device memory is host memory."""
        self.onnxruntime, self.provider = onnxruntime, provider
        self.__version__ = f"{onnxruntime.__version__} with {provider}"

    def Builder(self, log: Any) -> Builder:
        return Builder()

    def OnnxParser(self, network: Network, log: Any) -> Any:
        return SimpleNamespace(parse_from_file=network.load, parse=lambda _, path: network.load(path), num_errors=0)

    def Runtime(self, log: Any) -> Any:
        def deserialize(plan: Any) -> Engine | None:
            contents = json.loads(bytes(plan[:]))
            if not Path(contents["path"]).exists():
                log.log(self.ILogger.ERROR, f"the graph {contents['path']} no longer exists")
                return None
            return Engine(self, contents)

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


def graph_tensors(model: bytes) -> tuple[list[TensorInfo], list[TensorInfo]]:
    """The inputs and outputs of a model."""
    inputs, outputs = (
        [TensorInfo(name, dtype, tuple(shape)) for name, dtype, shape in tensors]
        for tensors in native.graph_tensors(model)
    )
    return inputs, outputs


class Network:
    """A graph's inputs, for which the builder defines profiles."""

    num_layers, get_layer = 0, None  # ONNX Runtime has its own

    def load(self, path: str) -> bool:
        self.path, (self._inputs, _) = str(Path(path).resolve()), graph_tensors(Path(path).read_bytes())
        return True

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    def get_input(self, index: int) -> Any:
        end = self._inputs[index]
        shape = tuple(-1 if isinstance(size, str) else size for size in end.shape)
        return SimpleNamespace(name=end.name, shape=shape, get_dimension_name=lambda axis: end.shape[axis])


class Builder:
    """Builds a plan that consists of the graph's path and the profiles' shapes."""

    def create_network(self, flags: int) -> Network:
        return Network()

    def create_builder_config(self) -> Any:
        profiles: list[Any] = []

        def add(profile: Any) -> int:
            profiles.append(profile.shapes)
            return len(profiles) - 1

        return SimpleNamespace(
            profiles=profiles,
            add_optimization_profile=add,
            progress_monitor=None,
            set_memory_pool_limit=lambda pool, size: None,
        )

    def create_optimization_profile(self) -> Any:
        shapes: dict[str, Any] = {}
        return SimpleNamespace(shapes=shapes, set_shape=lambda name, *sizes: shapes.__setitem__(name, sizes))

    def build_serialized_network(self, network: Network, config: Any) -> bytes:
        return json.dumps({"path": network.path, "profiles": config.profiles or [{}]}).encode()


class Engine:
    """A graph with one session for each stream that it runs on."""

    device_memory_size_v2 = 256  # ONNX Runtime manages its own scratch memory

    def __init__(self, trt: Executor, contents: dict[str, Any]) -> None:
        self.trt, self._path, self._profiles = trt, contents["path"], contents["profiles"]
        inputs, outputs = graph_tensors(Path(self._path).read_bytes())
        self.inputs = [end.name for end in inputs]
        self._ends = {end.name: end for end in (*inputs, *outputs)}
        self._names, self.num_io_tensors = list(self._ends), len(self._ends)
        self._sessions: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # by stream

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name in self.inputs else "OUTPUT"

    def get_tensor_dtype(self, name: str) -> str:
        return f"DataType.{_KINDS[self._ends[name].dtype][0]}"

    def dtype(self, name: str) -> Any:
        return _KINDS[self._ends[name].dtype][1]

    def dims(self, name: str) -> list[Any]:
        return list(self._ends[name].shape)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        shapes = self._profiles[profile].get(name)
        return [tuple(shape) for shape in shapes] if shapes else [tuple(self.dims(name))] * 3

    def create_execution_context(self, strategy: str) -> Context:
        return Context(self)

    def session(self, stream: int) -> Any:
        """The session of a stream, shared by its contexts."""
        session = self._sessions.get(stream)
        if session is None:
            options = self.trt.onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.add_session_config_entry("session.disable_quant_qdq", "1")  # quantize exactly as the graph says
            own = {"user_compute_stream": str(stream)} if self.trt.provider == CUDA else {}
            providers = [(self.trt.provider, own), ("CPUExecutionProvider", {})][: 2 if own else 1]
            session = self.trt.onnxruntime.InferenceSession(self._path, options, providers=providers)
            self._sessions[stream] = session
        return session


class Context:
    """Shapes and addresses of one execution."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._profile = engine, 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._session: Any = None  # on its lane's stream

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self._profile = profile
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        """Ignored, since ONNX Runtime manages its own scratch memory."""

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        minimum, _, maximum = self._engine.get_tensor_profile_shape(name, self._profile)
        self._shapes[name] = tuple(shape)
        return all(low <= size <= high for low, size, high in zip(minimum, shape, maximum, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return address % 256 == 0

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        axes: dict[Any, int] = {}
        for each in self._engine.inputs:
            axes.update(zip(self._engine.dims(each), self._shapes[each], strict=True))
        return tuple(axes[axis] if isinstance(axis, str) else axis for axis in self._engine.dims(name))

    def is_stream_capturable(self, stream: int) -> bool:
        """Whether a capture is worth trying: CPU work cannot be captured."""
        return self._engine.trt.provider == CUDA

    def execute_async_v3(self, stream: int) -> bool:
        device = "cuda" if self._engine.trt.provider == CUDA else "cpu"
        self._session = self._session or self._engine.session(stream)
        options = self._engine.trt.onnxruntime.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        binding = self._session.io_binding()
        for name, address in self._addresses.items():
            bind = binding.bind_input if name in self._engine.inputs else binding.bind_output
            bind(name, device, 0, self._engine.dtype(name), self.get_tensor_shape(name), address)
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as error:  # ONNX Runtime raises its own classes
            _log.warning("ONNX Runtime cannot run the graph: %s", " ".join(str(error).split()))
            return False
        return True
