"""A simulation of the NVIDIA driver, NVRTC and TensorRT in host memory, limited to what the backend trt calls.

It is as strict as possible. Work on a stream is recorded and runs only when a caller waits for it, which reveals memory
that is freed or reused too early, on the host too. Every address passed to an engine or a kernel must lie in live,
aligned memory of sufficient size; shapes must fit the profile; outputs must not overlap inputs or each other; fresh
memory is full of NaN, which must not be read. ONNX Runtime runs the graphs, and engines/search/kernels.cu is compiled
for the CPU. Any violation raises `Misuse`, which our code never catches.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import itertools
import json
import math
import os
import threading
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from blip2rt.backends.trt import onnxruntime_shim
from tests.compiled import shared_library

ALIGNMENT = 256


class Misuse(BaseException):
    """A rule of CUDA or TensorRT was broken."""


def must(holds: Any, fault: str) -> None:
    if not holds:
        raise Misuse(fault)


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_IMAGE = 200
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


OK = CUresult.CUDA_SUCCESS
_one_kernel = threading.Lock()


@functools.cache
def cpu_kernels() -> Any:
    """Compile kernels.cu for the CPU."""
    flags = "-O2 -ffp-contract=off -Wall -Wextra -Werror -pthread"
    loaded = ctypes.CDLL(str(shared_library("kernels_cpu", *flags.split())))
    loaded.launch.restype = ctypes.c_bool
    loaded.waits.restype = ctypes.c_ulong
    return loaded


class Stream:
    """Recorded work; during a capture it goes to `captured`."""

    def __init__(self, handle: int) -> None:
        self.handle, self.work, self.captured, self.invalid = handle, [], None, False

    def __int__(self) -> int:
        return self.handle

    def put(self, work: Callable[[], None]) -> None:
        (self.work if self.captured is None else self.captured).append(work)

    def run(self) -> None:
        while self.work:
            self.work.pop(0)()


class Driver:
    """cuda.bindings.driver in host memory."""

    def __init__(self, memory: int = 1 << 30, version: int = 12060, threads: int = 1) -> None:
        self.memory, self.version, self.threads = memory, version, threads
        self.live: dict[int, tuple[int, Any]] = {}
        self.host: dict[int, Any] = {}
        self.copying: dict[int, int] = {}  # pending copies to host memory
        self.streams: dict[int, Stream] = {}
        self.modules: set[str] = set()
        self.handles = itertools.count(0x1000)
        self.calls: list[str] = []
        self.launched: list[str] = []
        self.current = False
        self.CUstreamCaptureMode = self.CUdevice_attribute = int

    # State that tests inspect

    @property
    def used(self) -> int:
        return sum(size for size, _ in list(self.live.values()))

    def require(self, address: int, size: int, what: str) -> None:
        """Require that `size` bytes at `address` lie within one live allocation."""
        for start, (length, _) in list(self.live.items()):  # other threads allocate
            if start <= address and address + size <= start + length:
                return
        raise Misuse(f"{what}: {size} bytes at {address:#x} do not lie in memory of the device that is in use")

    def host_view(self, address: int, size: int) -> np.ndarray:
        return np.frombuffer((ctypes.c_char * size).from_address(address), np.uint8)

    def _stream(self, stream: Any) -> Stream:
        must(int(stream) in self.streams, "a stream that does not exist, or not any more")
        must(self.current, "no context is current")
        return self.streams[int(stream)]

    # Device

    def _do_nothing(self, *_: Any) -> tuple:
        return (OK,)

    cuInit = cuEventDestroy = cuGraphDestroy = _do_nothing

    def cuDriverGetVersion(self) -> tuple:
        return OK, self.version

    def cuDeviceGet(self, ordinal: int) -> tuple:
        return OK, ordinal

    def cuDeviceGetAttribute(self, attribute: int, device: int) -> tuple:
        return OK, {75: 8, 76: 7}[attribute]

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple:
        return OK, "context"

    def cuCtxSetCurrent(self, context: Any) -> tuple:
        must(context == "context", "no such context")
        self.current = True
        return (OK,)

    # Memory

    def cuMemAlloc(self, size: int) -> tuple:
        must(size > 0, "an allocation of nothing")
        must(self.current, "no context is current")
        if self.used + size > self.memory:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, 0
        raw = (ctypes.c_uint8 * (size + ALIGNMENT))()
        start = -(-ctypes.addressof(raw) // ALIGNMENT) * ALIGNMENT
        ctypes.memset(start, 0xFF, size)  # NaN in every float type
        self.live[start] = (size, raw)
        return OK, start

    def cuMemFree(self, address: int) -> tuple:
        must(address in self.live, "memory is freed that is not in use")
        del self.live[address]
        return (OK,)

    def cuMemAllocHost(self, size: int) -> tuple:
        raw = (ctypes.c_uint8 * size)()
        self.host[ctypes.addressof(raw)] = raw
        return OK, ctypes.addressof(raw)

    def cuMemFreeHost(self, address: int) -> tuple:
        must(address in self.host, "host memory is freed that is not in use")
        must(not self.copying.get(address), "host memory is freed before what is copied to it is there")
        del self.host[address]
        return (OK,)

    def cuMemsetD32Async(self, address: int, word: int, count: int, stream: Any) -> tuple:
        def work() -> None:
            self.require(address, count * 4, "memset")
            self.host_view(address, count * 4).view(np.uint32)[:] = word

        self._stream(stream).put(work)
        return (OK,)

    def cuMemcpyHtoDAsync(self, address: int, host: int, size: int, stream: Any) -> tuple:
        data = self.host_view(host, size).copy()

        def work() -> None:  # an integrated GPU may read it only now
            self.require(address, size, "copy to the device")
            must(unchanged(host, data), "host memory is freed or changed before it is copied to the device")
            self.host_view(address, size)[:] = data

        must(self._stream(stream).captured is None, "a copy from pageable memory is captured")
        self._stream(stream).put(work)
        return (OK,)

    def cuMemcpyDtoHAsync(self, host: int, address: int, size: int, stream: Any) -> tuple:
        def work() -> None:
            self.require(address, size, "copy from the device")
            self.host_view(host, size)[:] = self.host_view(address, size)
            self.copying[start] -= 1

        start = next((each for each, raw in self.host.items() if each <= host < each + len(raw)), host)
        self.copying[start] = self.copying.get(start, 0) + 1
        self._stream(stream).put(work)
        return (OK,)

    # Streams, events, graphs

    def cuStreamCreate(self, flags: int) -> tuple:
        must(flags == 1, "the stream would wait for the default stream")
        stream = Stream(next(self.handles))
        self.streams[stream.handle] = stream
        return OK, stream

    def cuStreamDestroy(self, stream: Any) -> tuple:
        del self.streams[int(stream)]
        return (OK,)

    def cuStreamSynchronize(self, stream: Any) -> tuple:
        must(self._stream(stream).captured is None, "a stream is waited for while it is captured")
        self._stream(stream).run()
        return (OK,)

    def cuEventCreate(self, flags: int) -> tuple:
        return OK, SimpleNamespace(stream=None, done=True)

    def cuEventRecord(self, event: Any, stream: Any) -> tuple:
        event.stream, event.done = self._stream(stream), False
        event.stream.put(lambda: setattr(event, "done", True))
        return (OK,)

    def cuEventSynchronize(self, event: Any) -> tuple:
        must(event.stream is not None, "an event is waited for that was never recorded")
        while not event.done:
            event.stream.work.pop(0)()
        return (OK,)

    def cuStreamBeginCapture(self, stream: Any, mode: int) -> tuple:
        must(mode == 1, "captured in a mode in which other threads may not allocate")
        must(self._stream(stream).captured is None, "a stream is captured twice")
        self._stream(stream).captured = []
        return (OK,)

    def cuStreamEndCapture(self, stream: Any) -> tuple:
        own = self._stream(stream)
        must(own.captured is not None, "a stream that is not captured")
        graph, own.captured = own.captured, None
        if own.invalid:
            own.invalid = False
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, None
        return OK, graph

    def cuGraphInstantiate(self, graph: Any, flags: int) -> tuple:
        return OK, SimpleNamespace(work=list(graph), live=True, running=0)

    def cuGraphExecDestroy(self, graph: Any) -> tuple:
        must(not graph.running, "a graph is destroyed while it is running")
        graph.live = False
        return (OK,)

    def cuGraphLaunch(self, graph: Any, stream: Any) -> tuple:
        must(graph.live, "a graph is launched that was destroyed")
        self.calls.append("graph")
        graph.running += 1
        for work in (*graph.work, lambda: setattr(graph, "running", graph.running - 1)):
            self._stream(stream).put(work)
        return (OK,)

    # Kernels

    def cuModuleLoadData(self, code: bytes) -> tuple:
        if not code.startswith(b"stand-in of sm_87"):
            return CUresult.CUDA_ERROR_INVALID_IMAGE, None
        module = f"module {next(self.handles)}"
        self.modules.add(module)
        return OK, module

    def cuModuleUnload(self, module: Any) -> tuple:
        must(self.current, "no context is current")
        self.modules.remove(module)
        return (OK,)

    def cuModuleGetFunction(self, module: Any, name: bytes) -> tuple:
        must(module in self.modules, "a module that is not loaded")
        return OK, name

    def cuLaunchKernel(self, kernel: bytes, *rest: Any) -> tuple:
        (x, y, z, threads, block_y, block_z, shared, stream, arguments, extra) = rest
        must((z, block_y, block_z, shared, extra) == (1, 1, 1, 0, 0), "an unusual launch")
        must(x >= 1 and 1 <= y <= 65535 and 1 <= threads <= 1024, "a grid that no GPU takes")
        values = copied(kernel.decode(), arguments)
        self.launched.append(kernel.decode())

        def work() -> None:
            check_launch(self, kernel.decode(), values, x, y)
            pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
            with _one_kernel:  # since blocks share their static memory
                must(cpu_kernels().launch(kernel, x, y, self.threads, pointers), f"no kernel {kernel.decode()}")

        self._stream(stream).put(work)
        return (OK,)


def unchanged(address: int, data: np.ndarray) -> bool:
    """Whether memory of this process still holds `data`. It may have been returned to the system."""
    try:
        with open("/proc/self/mem", "rb", buffering=0) as memory:
            return os.pread(memory.fileno(), data.nbytes, address) == data.tobytes()
    except FileNotFoundError:  # not on Linux
        return True
    except OSError:
        return False


# Kernel parameters: p is a pointer, q has 64 bits, i has 32 bits.
PARAMETERS = {"scatter": "ppppppqqiiii", "choose": "ppppppppppppi", "reorder": "pppppqiii", "spread": "pppqqi"}


def copied(kernel: str, arguments: int) -> list[Any]:
    kinds = {"p": ctypes.c_int64, "q": ctypes.c_int64, "i": ctypes.c_int32}
    pointers = (ctypes.c_void_p * len(PARAMETERS[kernel])).from_address(arguments)
    return [
        kinds[kind](kinds[kind].from_address(pointer).value)
        for kind, pointer in zip(PARAMETERS[kernel], pointers, strict=True)
    ]


def check_launch(driver: Driver, kernel: str, arguments: list[Any], rows: int, tensors: int) -> None:
    """Require that everything a kernel reads and writes lies in live memory."""
    values = [argument.value for argument in arguments]

    def array(address: int, dtype: Any, count: int) -> np.ndarray:
        driver.require(address, np.dtype(dtype).itemsize * count, kernel)
        return driver.host_view(address, np.dtype(dtype).itemsize * count).view(dtype)

    if kernel == "scatter":
        fresh, cache, mask, sources, last_index, positions, fresh_stride, cache_stride, *sizes = values
        heads, length, capacity, width = sizes
        source = array(sources, np.int32, rows) if sources else np.arange(rows)
        counts = array(last_index, np.int64, int(source.max()) + 1)[source] + 1 if last_index else np.ones(rows, int)
        starts = array(positions, np.int64, rows) if positions else np.zeros(rows, int)
        must((counts >= 1).all() and (counts <= length).all(), "scatter: more positions than there are")
        must((starts >= 0).all() and (starts + counts <= capacity).all(), "scatter: behind the end of the cache")
        last = (tensors - 1) * 4
        driver.require(fresh, last * fresh_stride + (int(source.max()) + 1) * heads * length * width * 4, kernel)
        driver.require(cache, last * cache_stride + rows * heads * capacity * width * 4, kernel)
        driver.require(mask, rows * capacity * 4, kernel)
        must(tensors == 1 or cache_stride >= rows * heads * capacity * width, "scatter: tensors lie over each other")
    elif kernel == "choose":
        plan, logits, prompt_logits, images, *tops, lengths, tokens, positions, parents, done, k = values
        words = array(plan, np.int64, 8)
        stride, beams = words.view(np.int32)[12:14]
        block = array(int(words[2]), np.uint8, rows * int(stride))
        vocab = int(block[:96].view(np.int32)[8])
        used = rows * int(beams)
        driver.require(logits, used * vocab * 4, kernel)
        top_rows = used
        if images:
            top_rows = int(array(images, np.int32, rows).max()) + 1
            driver.require(prompt_logits, top_rows * vocab * 4, kernel)
            driver.require(lengths, rows * 4, kernel)
        for address, size in zip(tops, (k * 4, k * 8, 4), strict=True):
            driver.require(address, top_rows * size, kernel)
        for address, size in ((tokens, 8), (positions, 8), (parents, 4)):
            driver.require(address, used * size, kernel)
        driver.require(done, rows * 4, kernel)
        if words[3]:
            driver.require(int(words[4]), used * vocab * 4, kernel)
    elif kernel == "reorder":
        plan, cache, parents, lengths, positions, stride, heads, capacity, width = values
        beams = int(array(plan, np.int64, 8).view(np.int32)[13])
        parent = array(parents, np.int32, rows)
        must((parent // beams == np.arange(rows) // beams).all(), "reorder: a beam takes another answer's place")
        must((parent[parent] == parent).all(), "reorder: a parent is overwritten")
        begin = array(lengths, np.int32, rows // beams)[np.arange(rows) // beams]
        end = array(positions, np.int64, rows)
        must((begin <= end).all() and (end <= capacity).all(), "reorder: behind the end of the cache")
        driver.require(cache, (tensors - 1) * stride * 4 + rows * heads * capacity * width * 4, kernel)
    else:
        source, target, sources, from_stride, to_stride, words = values
        images = int(array(sources, np.int32, rows).max()) + 1
        driver.require(source, ((tensors - 1) * from_stride + images * words) * 4, kernel)
        driver.require(target, ((tensors - 1) * to_stride + rows * words) * 4, kernel)


class Nvrtc:
    """cuda.bindings.nvrtc: compiles nothing, and records the architecture."""

    def nvrtcVersion(self) -> tuple:
        return 0, 12, 6

    def nvrtcCreateProgram(self, source: bytes, name: bytes, count: int, headers: list, names: list) -> tuple:
        assert len(headers) == len(names) == count and b"scatter" in source
        return 0, SimpleNamespace(options=())

    def nvrtcCompileProgram(self, program: Any, count: int, options: list) -> tuple:
        program.options = options
        return (0,)

    def nvrtcDestroyProgram(self, program: Any) -> tuple:
        must(not hasattr(program, "destroyed"), "a program is destroyed twice")
        program.destroyed = True
        return (0,)

    def nvrtcGetCUBINSize(self, program: Any) -> tuple:
        return 0, 32

    def nvrtcGetCUBIN(self, program: Any, code: bytes) -> tuple:
        text = b"stand-in of " + program.options[0].split(b"=")[1]
        ctypes.memmove(code, text.ljust(32), 32)
        return (0,)


# TensorRT


class TensorRT(onnxruntime_shim.Executor):
    """The module `tensorrt`: builder, parser, runtime. A plan holds the graph's path, its profiles and its GPU.

    rtx: the module `tensorrt_rtx`, which also compiles kernels at run time for each new shape.
    """

    opens_graphs = False

    def __init__(self, driver: Driver, rtx: bool = False) -> None:
        self.driver, self.gpu, self.rtx = driver, "Orin", rtx
        self.__name__, self.__version__ = ("tensorrt_rtx", "1.7.0") if rtx else ("tensorrt", "10.3.0")
        self.builds = 0
        self.refuses_builds: str | None = None
        self.refuses_capture = self.refuses_while_collecting = False  # the latter: while garbage may be collected
        self.wrong_profile: int | None = None  # whose float outputs are reversed, to simulate a faulty builder
        self.begins, self.uncapturable = True, False
        self.flags: list[str] = []  # of the latest builder
        self.contexts: list[Context] = []
        self.compiled = self.serialized = 0  # kernels; how often a cache was serialized
        self.parsed: list[bytes] = []  # models that were not read from their files
        if rtx:
            self.ComputeCapability = SimpleNamespace(SM75=0, SM80=1, SM86=2, SM89=3, SM120=4, SM121=5)
            self.BuilderFlag = SimpleNamespace(REQUIRE_USER_ALLOCATION="REQUIRE_USER_ALLOCATION")
            self.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="EAGER", LAZY="LAZY")

    def Builder(self, log: Any) -> Any:
        if not self.begins:
            log.log(1, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return Builder(self, log)

    def OnnxParser(self, network: Any, log: Any) -> Any:
        def parse(model: bytes, path: str) -> bool:
            self.parsed.append(model)
            return network.load(path, model)

        return SimpleNamespace(parse_from_file=network.load, parse=parse, num_errors=0)

    def Runtime(self, log: Any) -> Any:
        def deserialize(plan: Any) -> Engine | None:
            must(not isinstance(plan, bytes), "a copy of the plan beside the device's")
            made = json.loads(bytes(memoryview(plan)))
            if made["gpu"] != self.gpu:
                log.log(1, f"the engine was built for {made['gpu']}")
                return None
            allocation = ["REQUIRE_USER_ALLOCATION"] if self.rtx else []
            must(made["flags"] == allocation, "a context that allocates while it runs")
            return Engine(self, made)

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


class RuntimeCache:
    """Run-time kernels by shape."""

    def __init__(self, trt: TensorRT) -> None:
        self.trt, self.known = trt, set()

    def serialize(self) -> bytes:
        self.trt.serialized += 1
        return json.dumps([self.trt.gpu, sorted(self.known)]).encode()

    def deserialize(self, data: bytes) -> bool:
        gpu, known = json.loads(data)
        if gpu == self.trt.gpu:
            self.known |= set(known)
        return gpu == self.trt.gpu


class Network(onnxruntime_shim.Network):
    def load(self, path: str, model: bytes | None = None) -> bool:
        model = model or Path(path).read_bytes()
        self.path, self._inputs = path, onnxruntime_shim.graph_tensors(model)[0]
        nodes = onnx.load_model_from_string(model).graph.node
        scattered = [node.input[0] for node in nodes if node.op_type == "TensorScatter"]
        fixed = all(isinstance(each.shape[2], int) for each in self._inputs if each.name in scattered)
        must(fixed, "a cache that is written has no fixed length")
        return True


class Builder(onnxruntime_shim.Builder):
    def __init__(self, trt: TensorRT, log: Any) -> None:
        self.trt, self.log = trt, log

    def create_network(self, flags: int) -> Network:
        assert flags == 2, "strongly typed"
        return Network()

    def create_builder_config(self) -> Any:
        config = super().create_builder_config()
        self.trt.flags = []
        config.set_flag = self.trt.flags.append
        return config

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        self.trt.builds += 1
        if self.trt.refuses_builds:
            self.log.log(1, self.trt.refuses_builds)
            return None
        fixed = {each.name: [each.shape] * 3 for each in network._inputs if all(isinstance(n, int) for n in each.shape)}
        profiles = [{**fixed, **profile} for profile in config.profiles or [{}]]
        made = {"path": network.path, "profiles": profiles, "gpu": self.trt.gpu, "flags": self.trt.flags}
        return json.dumps(made).encode()


class Engine(onnxruntime_shim.Engine):
    def __init__(self, trt: TensorRT, made: dict) -> None:
        super().__init__(trt, made)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # quantize exactly as the graph says
        options.log_severity_level = 3  # ONNX Runtime warns about copied caches
        self.graph = ort.InferenceSession(made["path"], options, providers=["CPUExecutionProvider"])
        self.num_optimization_profiles = len(made["profiles"])
        self.device_memory_size_v2 = 1000 + 64 * self.num_io_tensors

    def create_runtime_config(self) -> Any:
        config = SimpleNamespace(cache=None, dynamic_shapes_kernel_specialization_strategy="LAZY")
        config.set_execution_context_allocation_strategy = lambda each: setattr(config, "allocation", each)
        config.create_runtime_cache = lambda: RuntimeCache(self.trt)
        config.set_runtime_cache = lambda cache: setattr(config, "cache", cache)
        return config

    def create_execution_context(self, config: Any) -> Context:
        """config: tensorrt_rtx's runtime config, or tensorrt's allocation strategy."""
        if self.trt.rtx:
            must(config.dynamic_shapes_kernel_specialization_strategy == "EAGER", "kernels that come after a capture")
            must(config.cache is not None, "a context that forgets what it compiles")
        allocation = config.allocation if self.trt.rtx else config
        must(allocation == "USER_MANAGED", "a context that allocates its scratch memory")
        self.trt.contexts.append(Context(self, config.cache if self.trt.rtx else None))
        return self.trt.contexts[-1]


class Context:
    """Checks every call, and runs the graph when its stream is waited for.

    tensorrt_rtx compiles at the first run of each shape, and may be captured only after it was asked.
    """

    def __init__(self, engine: Engine, cache: RuntimeCache | None) -> None:
        self.engine, self.driver, self.cache = engine, engine.trt.driver, cache
        self.asked = False
        if cache is None:
            self.is_stream_capturable: Any = None  # tensorrt has no such method
        self.profile: int | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch = (0, 0)
        self.warm: Any = None  # shapes of earlier runs

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.driver._stream(stream)
        self.profile = profile
        return 0 <= profile < self.engine.num_optimization_profiles

    def set_device_memory(self, address: int, size: int) -> None:
        must(size >= self.engine.device_memory_size_v2, "less scratch memory than the engine asks for")
        self.scratch = (address, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        must(self.profile is not None, "a shape before the profile")
        must(name in self.engine.inputs, f"{name} is no input")
        least, _, most = self.engine.get_tensor_profile_shape(name, self.profile)
        if len(shape) != len(most) or any(not a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
            return False
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        must(name in self.engine._names, f"the engine has no tensor {name}")
        self.addresses[name] = address
        return address % ALIGNMENT == 0

    def axes(self) -> dict[str, int]:
        """Sizes of the dynamic axes, according to the inputs' shapes."""
        sizes: dict[str, int] = {}
        for name in self.engine.inputs:
            for axis, size in zip(self.engine.dims(name), self.shapes[name], strict=True):
                must(
                    not isinstance(axis, str) or sizes.setdefault(axis, size) == size,
                    f"{name} has {size} of {axis}, another input {sizes.get(axis)}",
                )
        return sizes

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.engine.inputs:
            return self.shapes.get(name, (-1,))
        if any(each not in self.shapes for each in self.engine.inputs):
            return (-1,)
        return tuple(self.axes()[axis] if isinstance(axis, str) else axis for axis in self.engine.dims(name))

    def is_stream_capturable(self, stream: int) -> bool:
        must(self.driver._stream(stream).captured is None, "asked while the stream is captured")
        self.asked = True
        return not self.engine.trt.uncapturable

    def execute_async_v3(self, stream: int) -> bool:
        own, trt = self.driver._stream(stream), self.engine.trt
        for name in self.engine.inputs:
            must(name in self.shapes, f"{name} has no shape")
        for name in self.engine._names:
            must(self.addresses.get(name), f"{name} has no address")
        shapes = {name: self.get_tensor_shape(name) for name in self.engine._names}
        if own.captured is not None:
            must(self.cache is None or (self.asked and not trt.uncapturable), "captured without asking")
            must(self.warm == shapes, "captured before it has run once with these shapes")
            if trt.refuses_capture or (trt.refuses_while_collecting and gc.isenabled()):
                own.invalid = True
                return False
        key = repr((self.profile, sorted(self.shapes.items())))
        if self.cache is not None and key not in self.cache.known:
            trt.compiled += 1
            self.cache.known.add(key)
        self.warm = shapes
        addresses, scratch = dict(self.addresses), self.scratch
        own.put(lambda: self.run(shapes, addresses, scratch))
        return True

    def run(self, shapes: dict, addresses: dict, scratch: tuple[int, int]) -> None:
        must(scratch[0] and scratch[1] >= self.engine.device_memory_size_v2, "no scratch memory")
        self.driver.require(*scratch, "scratch memory")
        self.driver.host_view(*scratch)[:] = 0xFF
        spans, feeds = [], {}
        for name, shape in shapes.items():
            dtype = np.dtype(self.engine.dtype(name))
            size = math.prod(shape) * dtype.itemsize
            self.driver.require(addresses[name], size, name)
            spans.append((addresses[name], addresses[name] + size, name))
            if name in self.engine.inputs:
                view = self.driver.host_view(addresses[name], size).view(dtype).reshape(shape)
                unset = (view.view(np.uint8).reshape(-1, dtype.itemsize) == 0xFF).all(-1)
                must(dtype.kind != "f" or not unset.any(), f"{name} has unwritten numbers")
                feeds[name] = view.copy()
        spans.append((scratch[0], sum(scratch), "scratch memory"))
        for start, end, name in spans:
            if name in self.engine.inputs:
                continue
            own = name.replace("present_", "past_")  # an in-place cache keeps its address
            must(own not in self.engine.inputs or own == name or addresses[own] == start, f"{name} is not {own}")
            for other_start, other_end, other in spans:
                apart = end <= other_start or other_end <= start
                must(other in (name, own) or apart, f"{name} lies over {other}")
        results = self.engine.graph.run(None, feeds)
        if self.engine.trt.wrong_profile == self.profile:
            results = [each[..., ::-1] if each.dtype.kind == "f" else each for each in results]
        for output, result in zip(self.engine.graph.get_outputs(), results, strict=True):
            must(result.shape == shapes[output.name], f"{output.name} is {result.shape}")
            self.driver.host_view(addresses[output.name], result.nbytes)[:] = np.frombuffer(result.tobytes(), np.uint8)
