"""ONNX Runtime in TensorRT's place: what the backend trt asks of the module `tensorrt`, and no more.

Where no TensorRT is installed, the loop on the device (lanes, kernels, capture) runs for real all the same. On a GPU it
is the CUDA provider, on the backend's own stream and addresses; on the driver that stands in, where the device's memory
is the host's, the CPU's. Its speed says nothing about TensorRT's.
"""

from __future__ import annotations

import json
import logging
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime

from blip2rt import cuda_libraries

_KINDS = {1: ("FLOAT", np.float32), 6: ("INT32", np.int32), 7: ("INT64", np.int64), 10: ("HALF", np.float16)}
_log = logging.getLogger("blip2rt")


class Executor:
    """The module."""

    __name__ = "tensorrt"
    TensorIOMode = SimpleNamespace(INPUT="INPUT", OUTPUT="OUTPUT")
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="USER_MANAGED")
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    MemoryPoolType = SimpleNamespace(WORKSPACE="WORKSPACE")

    class ILogger:
        ERROR = 1

    class IProgressMonitor:
        pass

    def __init__(self, provider: str) -> None:
        self.provider, self.refusals = provider, 0
        self.__version__ = f"0, by onnxruntime {onnxruntime.__version__} with {provider}"

    def Builder(self, log: Any) -> Builder:
        return Builder()

    def OnnxParser(self, network: Network, log: Any) -> Any:
        return SimpleNamespace(parse_from_file=network.load, parse=lambda _, path: network.load(path), num_errors=0)

    def Runtime(self, log: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: Engine(self, json.loads(bytes(plan[:]))))


def install(stand_in: bool) -> Executor:
    """Take TensorRT's place in this process. Raises ImportError: ONNX Runtime has no CUDA provider."""
    provider = "CPUExecutionProvider" if stand_in else "CUDAExecutionProvider"
    if not stand_in:
        cuda_libraries.preload()
    if provider not in onnxruntime.get_available_providers():
        raise ImportError(f"onnxruntime {onnxruntime.__version__} has no {provider}: lay onnxruntime-gpu's wheel there")
    made = Executor(provider)
    sys.modules["tensorrt"] = made  # type: ignore[assignment]
    return made


class Network:
    """A graph's inputs, as the builder's profiles need them."""

    def load(self, path: str) -> bool:
        self.path, self._inputs = path, onnx.load(path, load_external_data=False).graph.input
        return True

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    def get_input(self, index: int) -> Any:
        dims = self._inputs[index].type.tensor_type.shape.dim
        return SimpleNamespace(
            name=self._inputs[index].name, shape=tuple(-1 if dim.dim_param else dim.dim_value for dim in dims),
            get_dimension_name=lambda axis: dims[axis].dim_param,
        )  # fmt: skip


class Builder:
    """Its plan names the graph and the profiles' shapes."""

    def create_network(self, flags: int) -> Network:
        return Network()

    def create_builder_config(self) -> Any:
        profiles: list[Any] = []

        def add(profile: Any) -> int:
            profiles.append(profile.shapes)
            return len(profiles) - 1

        return SimpleNamespace(profiles=profiles, add_optimization_profile=add, progress_monitor=None)

    def create_optimization_profile(self) -> Any:
        shapes: dict[str, Any] = {}
        return SimpleNamespace(shapes=shapes, set_shape=lambda name, *sizes: shapes.__setitem__(name, sizes))

    def build_serialized_network(self, network: Network, config: Any) -> bytes:
        return json.dumps({"path": network.path, "profiles": config.profiles or [{}]}).encode()


class Engine:
    """A graph, with a session for each stream that it runs on."""

    device_memory_size_v2 = 256  # ONNX Runtime has scratch memory of its own

    def __init__(self, trt: Executor, made: dict[str, Any]) -> None:
        self.trt, self._path, self._profiles = trt, made["path"], made["profiles"]
        graph = onnx.load(self._path, load_external_data=False).graph
        self.inputs = [value.name for value in graph.input]
        self._values = {value.name: value.type.tensor_type for value in (*graph.input, *graph.output)}
        self._names, self.num_io_tensors = list(self._values), len(self._values)
        self._sessions: dict[int, Any] = {}

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name in self.inputs else "OUTPUT"

    def get_tensor_dtype(self, name: str) -> str:
        return f"DataType.{_KINDS[self._values[name].elem_type][0]}"

    def dtype(self, name: str) -> Any:
        return _KINDS[self._values[name].elem_type][1]

    def dims(self, name: str) -> list[Any]:
        return [dim.dim_param or dim.dim_value for dim in self._values[name].shape.dim]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        shapes = self._profiles[profile].get(name)
        return [tuple(shape) for shape in shapes] if shapes else [tuple(self.dims(name))] * 3

    def create_execution_context(self, strategy: str) -> Context:
        return Context(self)

    def session(self, stream: int) -> Any:
        if stream not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.add_session_config_entry("session.disable_quant_qdq", "1")  # int8 as the operators say
            own = {"user_compute_stream": str(stream)} if self.trt.provider.startswith("CUDA") else {}
            providers = [(self.trt.provider, own), ("CPUExecutionProvider", {})][: 2 if own else 1]
            self._sessions[stream] = onnxruntime.InferenceSession(self._path, options, providers=providers)
        return self._sessions[stream]


class Context:
    """Shapes and addresses, bound to a session as they are."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._profile = engine, 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self._profile = profile
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        """Not used: see Engine."""

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self._engine.get_tensor_profile_shape(name, self._profile)
        self._shapes[name] = tuple(shape)
        return all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return address % 256 == 0

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        axes: dict[Any, int] = {}
        for each in self._engine.inputs:
            axes.update(zip(self._engine.dims(each), self._shapes[each], strict=True))
        return tuple(axes[axis] if isinstance(axis, str) else axis for axis in self._engine.dims(name))

    def is_stream_capturable(self, stream: int) -> bool:
        """The CPU's work cannot be captured; the CUDA provider's is tried."""
        return self._engine.trt.provider.startswith("CUDA")

    def execute_async_v3(self, stream: int) -> bool:
        device = "cuda" if self._engine.trt.provider.startswith("CUDA") else "cpu"
        session, options = self._engine.session(stream), onnxruntime.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        binding = session.io_binding()
        for name, address in self._addresses.items():
            bind = binding.bind_input if name in self._engine.inputs else binding.bind_output
            bind(name, device, 0, self._engine.dtype(name), self.get_tensor_shape(name), address)
        try:
            session.run_with_iobinding(binding, options)
        except Exception as error:  # of ONNX Runtime's own kinds
            _log.warning("ONNX Runtime in TensorRT's place: %s", " ".join(str(error).split()))
            return False
        return True
