"""A simulation of the NVIDIA driver and TensorRT in host memory, limited to what the backend trt calls.

Work on a stream is recorded and runs only when a caller waits for it, which reveals memory that is freed or reused too
early, on the host too. Every address must lie in live, aligned memory of sufficient size; shapes must fit the profile;
outputs must not overlap inputs or each other; fresh memory is full of NaN, which must not be read. ONNX Runtime runs
the graphs. Any violation raises `Misuse`, which our code never catches. What only a GPU shows: docs/jetson.md.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import math
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime

ALIGNMENT = 256


class Misuse(BaseException):
    """A rule of CUDA or TensorRT was broken."""


def must(holds: Any, fault: str) -> None:
    if not holds:
        raise Misuse(fault)


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


OK = CUresult.CUDA_SUCCESS


class Stream:
    """Recorded work; during a capture it goes to `captured`."""

    def __init__(self, handle: int) -> None:
        self.handle, self.work, self.captured, self.invalid = handle, [], None, False

    __int__ = lambda self: self.handle  # noqa: E731


def bytes_at(address: int, size: int) -> np.ndarray:
    return np.frombuffer((ctypes.c_char * size).from_address(address), np.uint8)


class Driver:
    """cuda.bindings.driver in host memory."""

    def __init__(self, memory: int = 1 << 30) -> None:
        self.memory = memory
        self.live: dict[int, tuple[int, Any]] = {}  # memory of the device
        self.pinned: dict[int, tuple[int, Any]] = {}  # page-locked memory of the host
        self.streams: dict[int, Stream] = {}
        self.handles = itertools.count(0x1000)
        self.graphs = self.copies = 0  # launched; of blocks
        self.current = False
        self.CUstreamCaptureMode = self.CUmemorytype = int
        self.CUDA_MEMCPY3D = SimpleNamespace

    used = property(lambda self: sum(size for size, _ in self.live.copy().values()))

    def require(self, address: int, size: int, what: str, host: bool = False) -> None:
        """Require that `size` bytes at `address` lie within one live allocation."""
        found = (self.pinned if host else self.live).copy().items()  # other threads and finalizers change it
        inside = any(start <= address and address + size <= start + length for start, (length, _) in found)
        must(inside, f"{what}: {size} bytes at {address:#x} do not lie in {'pinned' if host else 'device'} memory")

    def _stream(self, stream: Any) -> Stream:
        must(int(stream) in self.streams, "a stream that does not exist, or not any more")
        must(self.current, "no context is current")
        return self.streams[int(stream)]

    def _put(self, stream: Any, work: Callable[[], None]) -> tuple[Any, ...]:
        own = self._stream(stream)
        (own.work if own.captured is None else own.captured).append(work)
        return (OK,)

    def cuInit(self, *_: Any) -> tuple[Any, ...]:
        return (OK,)

    cuGraphDestroy = cuInit

    def cuDeviceGet(self, ordinal: int) -> tuple[Any, ...]:
        return OK, "context"

    cuDevicePrimaryCtxRetain = cuDeviceGet

    def cuCtxSetCurrent(self, context: Any) -> tuple[Any, ...]:
        must(context == "context", "no such context")
        self.current = True
        return (OK,)

    def cuMemAlloc(self, size: int, on_host: bool = False) -> tuple[Any, ...]:
        must(size > 0 and self.current, "an allocation of nothing, or without a context")
        if not on_host and self.used + size > self.memory:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, 0
        raw = (ctypes.c_uint8 * (size + ALIGNMENT))()
        start = -(-ctypes.addressof(raw) // ALIGNMENT) * ALIGNMENT
        ctypes.memset(start, 0xFF, size)  # NaN in every float type
        (self.pinned if on_host else self.live)[start] = (size, raw)
        return OK, start

    def cuMemAllocHost(self, size: int) -> tuple[Any, ...]:
        return self.cuMemAlloc(size, on_host=True)

    def cuMemFree(self, address: int, on_host: bool = False) -> tuple[Any, ...]:
        where = self.pinned if on_host else self.live
        must(address in where, "memory is freed that is not in use")
        must(
            all(stream.captured is None for stream in self.streams.copy().values()), "memory is freed during a capture"
        )
        del where[address]
        return (OK,)

    def cuMemFreeHost(self, address: int) -> tuple[Any, ...]:
        return self.cuMemFree(address, on_host=True)

    def cuMemsetD32Async(self, address: int, word: int, count: int, stream: Any) -> tuple[Any, ...]:
        def work() -> None:
            self.require(address, count * 4, "memset")
            bytes_at(address, count * 4).view(np.uint32)[:] = word

        return self._put(stream, work)

    def cuMemcpyHtoDAsync(self, to: int, source: int, size: int, stream: Any, to_host: bool = False) -> tuple[Any, ...]:
        def work() -> None:
            self.require(to, size, "copy", to_host)
            self.require(source, size, "copy", not to_host)
            bytes_at(to, size)[:] = bytes_at(source, size)

        return self._put(stream, work)

    def cuMemcpyDtoHAsync(self, host: int, address: int, size: int, stream: Any) -> tuple[Any, ...]:
        return self.cuMemcpyHtoDAsync(host, address, size, stream, to_host=True)

    def cuMemcpy3DAsync(self, block: Any, stream: Any) -> tuple[Any, ...]:
        ends, where = [], []
        for prefix in ("src", "dst"):
            on_host = getattr(block, f"{prefix}MemoryType") == 1
            address = getattr(block, f"{prefix}Host" if on_host else f"{prefix}Device")
            pitch, height = getattr(block, f"{prefix}Pitch"), getattr(block, f"{prefix}Height")
            must(block.WidthInBytes <= pitch and block.Height <= height, "a copy of rows that lie over each other")
            size = ((block.Depth - 1) * height + block.Height - 1) * pitch + block.WidthInBytes
            ends.append((address, size, (height * pitch, pitch, 1)))
            where.append(on_host)

        def work() -> None:
            views, starts = [], []
            for (address, size, strides), on_host in zip(ends, where, strict=True):
                if not on_host:
                    self.require(address, size, "copy of blocks")
                shape = (block.Depth, block.Height, block.WidthInBytes)
                views.append(np.lib.stride_tricks.as_strided(bytes_at(address, size), shape, strides))
                starts.append(
                    address + np.add.outer(np.arange(shape[0]) * strides[0], np.arange(shape[1]) * strides[1])
                )
            both = np.concatenate([each.ravel() for each in starts])
            order = np.argsort(both, kind="stable")
            must((np.diff(both[order]) >= block.WidthInBytes).all(), "a copy to memory that it reads")
            views[1][:] = views[0]

        self.copies += 1
        return self._put(stream, work)

    def cuStreamCreate(self, flags: int) -> tuple[Any, ...]:
        must(flags == 1, "the stream would wait for the default stream")
        stream = Stream(next(self.handles))
        self.streams[stream.handle] = stream
        return OK, stream

    def cuStreamDestroy(self, stream: Any) -> tuple[Any, ...]:
        del self.streams[int(stream)]
        return (OK,)

    def cuStreamSynchronize(self, stream: Any) -> tuple[Any, ...]:
        own = self._stream(stream)
        must(own.captured is None, "a stream is waited for while it is captured")
        while own.work:
            own.work.pop(0)()
        return (OK,)

    def cuStreamBeginCapture(self, stream: Any, mode: int) -> tuple[Any, ...]:
        must(mode == 1, "captured in a mode in which other threads may not allocate")
        must(self._stream(stream).captured is None, "a stream is captured twice")
        self._stream(stream).captured = []
        return (OK,)

    def cuStreamEndCapture(self, stream: Any) -> tuple[Any, ...]:
        own = self._stream(stream)
        (graph, own.captured), invalid, own.invalid = (own.captured, None), own.invalid, False
        must(graph is not None, "a stream that is not captured")
        return (CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, None) if invalid else (OK, graph)

    def cuGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any, ...]:
        return OK, SimpleNamespace(work=list(graph), live=True)

    def cuGraphExecDestroy(self, graph: Any) -> tuple[Any, ...]:
        graph.live = False
        return (OK,)

    def cuGraphLaunch(self, graph: Any, stream: Any) -> tuple[Any, ...]:
        must(graph.live, "a graph is launched that was destroyed")
        self.graphs += 1

        def work() -> None:
            must(graph.live, "a graph is destroyed before it has run")
            for each in graph.work:
                each()

        return self._put(stream, work)


class TensorRT:
    """The module `tensorrt`: builder, parser, runtime. A plan holds the graph's path, its profiles and its GPU."""

    __name__, __version__ = "tensorrt", "10.3.0"
    TensorIOMode = SimpleNamespace(INPUT="INPUT")
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="USER_MANAGED")
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)

    IProgressMonitor, ILogger = type("Monitor", (), {}), type("Logger", (), {"ERROR": 1})

    def __init__(self, driver: Driver) -> None:
        self.driver, self.gpu, self.builds, self.refuses_capture = driver, "Orin", 0, False
        self.wrong_profile: int | None = None  # whose float outputs are reversed, to simulate a faulty builder
        self.fails: Callable[[str], bool] = lambda path: False  # whether a run of this graph fails

    def Builder(self, log: Any) -> TensorRT:
        return self

    def create_network(self, flags: int) -> Network:
        must(flags == 2, "a network that is not strongly typed")
        return Network()

    def create_builder_config(self) -> Any:
        profiles: list[Any] = []
        add = lambda profile: profiles.append(profile.shapes) or len(profiles) - 1  # noqa: E731
        return SimpleNamespace(profiles=profiles, add_optimization_profile=add)

    def create_optimization_profile(self) -> Any:
        shapes: dict[str, Any] = {}
        return SimpleNamespace(shapes=shapes, set_shape=lambda name, *sizes: shapes.__setitem__(name, sizes))

    def build_serialized_network(self, network: Network, config: Any) -> bytes:
        self.builds += 1
        fixed = {name: [shape] * 3 for name, shape in network.inputs if all(isinstance(n, int) for n in shape)}
        profiles = [{**fixed, **profile} for profile in config.profiles or [{}]]
        return json.dumps({"path": network.path, "profiles": profiles, "gpu": self.gpu}).encode()

    def OnnxParser(self, network: Any, log: Any) -> Any:
        return SimpleNamespace(parse_from_file=network.load, num_errors=0)

    def Runtime(self, log: Any) -> Any:
        def deserialize(plan: Any) -> Engine | None:
            must(not isinstance(plan, bytes), "a copy of the plan beside the device's")
            made = json.loads(bytes(memoryview(plan)))
            if made["gpu"] == self.gpu:
                return Engine(self, made)
            return log.log(1, f"the engine was built for {made['gpu']}")

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


class Network:
    num_inputs = property(lambda self: len(self.inputs))

    def load(self, path: str) -> bool:
        graph = onnx.load(path, load_external_data=False).graph
        self.path, self.inputs = str(Path(path).resolve()), [(each.name, dims(each)) for each in graph.input]
        return True

    def get_input(self, index: int) -> Any:
        name, sizes = self.inputs[index]
        shape = tuple(-1 if isinstance(size, str) else size for size in sizes)
        return SimpleNamespace(name=name, shape=shape, get_dimension_name=lambda axis: sizes[axis])


def dims(value: Any) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


class Engine:
    device_memory_size_v2 = 4000

    def __init__(self, trt: TensorRT, made: dict[str, Any]) -> None:
        self.trt, self.path, self.profiles = trt, made["path"], made["profiles"]
        graph = onnx.load(self.path, load_external_data=False).graph
        self.inputs = [value.name for value in graph.input]
        self.ends = {value.name: value for value in (*graph.input, *graph.output)}
        self.num_io_tensors, self.num_optimization_profiles = len(self.ends), len(self.profiles)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # quantize exactly as the graph says
        self.session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])

        self.get_tensor_name = lambda index: list(self.ends)[index]
        self.get_tensor_mode = lambda name: "INPUT" if name in self.inputs else "OUTPUT"
        self.get_tensor_profile_shape = lambda name, profile: self.profiles[profile][name]

    def dtype(self, name: str) -> np.dtype:
        return onnx.helper.tensor_dtype_to_np_dtype(self.ends[name].type.tensor_type.elem_type)

    def get_tensor_dtype(self, name: str) -> str:
        return "DataType." + {"float32": "FLOAT", "float16": "HALF", "int64": "INT64"}[str(self.dtype(name))]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(-1 if isinstance(size, str) else size for size in dims(self.ends[name]))

    def create_execution_context(self, allocation: str) -> Context:
        must(allocation == "USER_MANAGED", "a context that allocates its scratch memory")
        return Context(self)


class Context:
    """Checks every call, and runs the graph when its stream is waited for."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.driver = engine, engine.trt.driver
        self.profile: int | None = None
        self.shapes, self.addresses = dict[str, tuple[int, ...]](), dict[str, int]()
        self.warm: Any = None  # shapes of the run before

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.driver._stream(stream)
        self.profile = profile
        return 0 <= profile < self.engine.num_optimization_profiles

    def set_device_memory(self, address: int, size: int) -> None:
        must(size >= self.engine.device_memory_size_v2, "less scratch memory than the engine asks for")
        self.scratch = (address, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.get_tensor_profile_shape(name, self.profile or 0)
        self.shapes[name] = tuple(shape)
        return len(shape) == len(most) and all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        must(name in self.engine.ends, f"the engine has no tensor {name}")
        self.addresses[name] = address
        return address % ALIGNMENT == 0

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes: dict[Any, int] = {}
        for each in self.engine.inputs:
            for axis, size in zip(dims(self.engine.ends[each]), self.shapes[each], strict=True):
                must(isinstance(axis, int) or sizes.setdefault(axis, size) == size, f"{each} has {size} of {axis}")
        return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in dims(self.engine.ends[name]))

    def execute_async_v3(self, stream: int) -> bool:
        own, trt = self.driver._stream(stream), self.engine.trt
        for name in self.engine.ends:
            must(self.addresses.get(name), f"{name} has no address")
        shapes = {name: self.get_tensor_shape(name) for name in self.engine.ends}
        if own.captured is not None:
            must(self.warm == shapes, "captured before it has run once with these shapes")
            own.invalid = trt.refuses_capture
        if trt.fails(self.engine.path) or own.invalid:
            return False
        self.warm, addresses = shapes, dict(self.addresses)
        self.driver._put(stream, lambda: self.run(shapes, addresses))
        return True

    def run(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        self.driver.require(*self.scratch, "scratch memory")
        bytes_at(*self.scratch)[:] = 0xFF
        spans, feeds = [(self.scratch[0], sum(self.scratch), "")], {}
        for name, shape in shapes.items():
            dtype = self.engine.dtype(name)
            size = math.prod(shape) * dtype.itemsize
            self.driver.require(addresses[name], size, name)
            spans.append((addresses[name], addresses[name] + size, name))
            if name in self.engine.inputs:
                view = bytes_at(addresses[name], size)
                unset = (view.reshape(-1, dtype.itemsize) == 0xFF).all(-1)
                must(dtype.kind != "f" or not unset.any(), f"{name} has unwritten numbers")
                feeds[name] = view.view(dtype).reshape(shape).copy()
        for start, end, name in spans:
            for other_start, other_end, other in spans:
                apart = end <= other_start or other_end <= start
                must(name in self.engine.inputs or name == other or apart, f"{name} lies over {other}")
        results = self.engine.session.run(None, feeds)
        if self.engine.trt.wrong_profile == self.profile:
            results = [each[..., ::-1] if each.dtype.kind == "f" else each for each in results]
        for output, result in zip(self.engine.session.get_outputs(), results, strict=True):
            must(result.shape == shapes[output.name], f"{output.name} is {result.shape}")
            bytes_at(addresses[output.name], result.nbytes)[:] = np.frombuffer(result.tobytes(), np.uint8)
