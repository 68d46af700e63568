"""Fuzz ONNX Runtime and the executor by operators: `python -m tests.fuzz.nodes [--seconds N] [--seed S] [--first N]`.

Each graph has one or two random operators that untrusted graphs may have, with odd shapes, types, numbers and
attributes; those of com.microsoft also have inputs that are not allowed. It runs or fails with an error, within
ALARM_SECONDS. If both run it, they must agree. If the process dies, the last line names the graph, which --first N
repeats.
"""

import argparse
import contextlib
import random
import re
import resource
import signal
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.engines.native import GraphError, Session, runtime
from tests.engines.native.graphs import VERSION
from tests.seeds import session_seed

TABLE = Path(__file__).parents[2] / "engines" / "graphs" / "allowed_operators.cpp"
SHAPED = "Expand Gather GatherND ReduceL2 ReduceLogSumExp ReduceMean ReduceSum Reshape Slice Split Squeeze Tile TopK"
SHAPED += " Unsqueeze"  # operators whose later inputs are sizes, axes or positions
EXTREME = [0, 1, -1, 2, 3, 7, 20, 1000, 5000, 2**16, 10**6, -(10**6), 2**31 - 1, -(2**31), 2**31, 2**40, 2**62]
EXTREME += [2**63 - 1, -(2**63)]
ROUGH = {"Cast", "DynamicQuantizeMatMul", "MatMulNBits"}  # of infinity to integers, and of rounded activations
AXES = [0, 1, 1, 1, 2, 2, 3, 4, 5, 17]
TYPES = [np.float16, np.int32, np.int64, np.int8, np.uint8, np.bool_]
ALARM_SECONDS, BYTES = 60, 6 << 30
OPSETS = [17, 18, 19, 20, 20, 20, 20, 21, 24]


@cache
def table() -> dict[str, tuple[list[str], str, dict[str, str]]]:
    """Read the core's table: operator -> inputs, outputs, values of each attribute."""
    found = re.search(r'kOperators\[\] = R"\(\n(.*?)\)"', TABLE.read_text(), re.DOTALL)
    assert found
    rows = [line.split() for line in found[1].replace("\n  ", " ").splitlines()]
    return {
        name: (
            inputs.split(","),
            outputs,
            {key.rstrip("!"): value for key, value in (each.split("=") for each in more)},
        )
        for name, inputs, outputs, *more in rows
    }


def random_value(values: str, rng: random.Random) -> Any:
    """Draw one of an attribute's values."""
    if values == "float":
        return rng.choice([0.0, 1.0, -1.0, 1e-6, 1e30, -1e30])
    if values.startswith("["):
        return [random_value(values[1:-1], rng) for _ in range(rng.choice([1, 2, 2, 2, 3, 4, 4]))]
    low, dots, high = rng.choice(values.split("|")).partition("..")
    if not dots:
        return int(low) if low.lstrip("-").isdigit() else low
    first, last = int(low), int(high)
    return min(last, max(first, rng.choice([first, last, 0, 1, 2, rng.randint(first, min(last, first + 8))])))


def array(rng: random.Random, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        values = np.random.default_rng(rng.randrange(2**31)).standard_normal(shape)
        if rng.random() < 0.1 and values.size:
            values.flat[rng.randrange(values.size)] = rng.choice([np.nan, np.inf, -np.inf, 1e30])
        with np.errstate(over="ignore"):
            return values.astype(dtype)
    choices = EXTREME if rng.random() < 0.3 else [0, 1, 1, 2, 3, -1, -2]
    numbers = [rng.choice(choices) for _ in range(int(np.prod(shape)))]
    return np.array(numbers, np.int64).astype(dtype).reshape(shape)


def random_shape(rng: random.Random, like: tuple[int, ...] | None = None) -> tuple[int, ...]:
    if like is not None and rng.random() < 0.75:
        kept = like[rng.choice([0, 0, 0, 1]) :]
        return tuple(1 if rng.random() < 0.15 else axis for axis in kept)
    return tuple(rng.choice(AXES) for _ in range(rng.choice([0, 1, 2, 2, 3, 3, 4, 4, 5])))


def operands(kind: str, inputs: list[str], rng: random.Random) -> list[np.ndarray]:
    dtype = np.float32 if rng.random() < 0.7 else rng.choice(TYPES)
    first = array(rng, np.bool_ if kind == "Where" and rng.random() < 0.9 else dtype, random_shape(rng))
    rest = []
    for values in inputs[1:]:
        if values.startswith("["):
            rest.append(np.array(random_value(values.rstrip("?"), rng), np.int64))
        elif kind in SHAPED.split() and rng.random() < 0.95:
            rest.append(array(rng, np.int64, rng.choice([(), (0,), (1,), (1,), (2,), (first.ndim,), (3, 1), (2, 3)])))
        else:
            other = dtype if rng.random() < 0.85 else rng.choice(TYPES)
            rest.append(array(rng, other, random_shape(rng, first.shape)))
    return [first, *rest]


def random_inputs(inputs: list[str], rng: random.Random) -> list[str]:
    """Leave out some inputs at the end that may be missing, and repeat one that may be repeated."""
    if inputs == ["x*"]:
        return ["x"] * rng.randint(1, 3)
    needed = len([each for each in inputs if each[-1] not in "?~"])
    return inputs[: rng.randint(needed, len(inputs))]


Operands = list[np.ndarray]
Template = Callable[[random.Random, np.random.Generator], tuple[Operands, dict[str, Any]]]


def group_query_attention(rng: random.Random, normal: np.random.Generator) -> tuple[Operands, dict[str, Any]]:
    batch, length, heads, kv_heads, width = rng.choice([1, 2]), rng.choice([1, 2, 3]), 4, rng.choice([1, 2, 4]), 16
    positions, capacity = length + rng.randrange(3), 8
    sizes = [(batch, length, heads * width), *[(batch, length, kv_heads * width)] * 2]
    sizes += [(batch, kv_heads, capacity, width)] * 2
    floats = [normal.standard_normal(size).astype(np.float32) for size in sizes]
    lengths = [np.full(batch, positions - 1, np.int32), np.array(positions, np.int32)]
    rotation = [normal.standard_normal((capacity, width // 2)).astype(np.float32) for _ in range(2)]
    order = np.tile(np.arange(positions - length, positions), (batch, 1))
    bias = normal.standard_normal((batch, heads, length, positions)).astype(np.float32)
    return [*floats, *lengths, *rotation, order, bias], {"num_heads": heads, "kv_num_heads": kv_heads, "do_rotary": 1}


def matmul_nbits(rng: random.Random, normal: np.random.Generator) -> tuple[Operands, dict[str, Any]]:
    k, n, block, bits = rng.choice([16, 40, 64]), rng.choice([1, 8, 24]), rng.choice([16, 32, 64]), rng.choice([4, 8])
    blocks = -(-k // block)
    codes, zeros = (
        normal.integers(0, 256, size, dtype=np.uint8)
        for size in ((n, blocks, block * bits // 8), (n, -(-blocks * bits // 8)))
    )
    x, scales, bias = (normal.standard_normal(size).astype(np.float32) for size in ((2, k), (n, blocks), n))
    attributes = {"K": k, "N": n, "bits": bits, "block_size": block, "accuracy_level": rng.choice([0, 1, 2, 4])}
    return [x, codes, scales, zeros, np.arange(k, dtype=np.int32) // block, bias], attributes


def gather_block_quantized(rng: random.Random, normal: np.random.Generator) -> tuple[Operands, dict[str, Any]]:
    rows, width, block, bits = 7, rng.choice([32, 40, 64]), rng.choice([16, 32, 64]), rng.choice([4, 8])
    dtype, blocks = np.uint8 if bits == 8 else ml_dtypes.uint4, -(-width // block)
    codes, zeros = (normal.integers(0, 2**bits, (rows, size)).astype(dtype) for size in (width, blocks))
    scales = normal.standard_normal((rows, blocks)).astype(np.float32)
    attributes = {"block_size": block, "bits": bits, "gather_axis": 0, "quantize_axis": 1}
    return [codes, array(rng, np.int64, rng.choice([(), (1,), (2, 3)])), scales, zeros], attributes


def dynamic_quantize_matmul(rng: random.Random, normal: np.random.Generator) -> tuple[Operands, dict[str, Any]]:
    k, n = rng.choice([1, 16, 40]), rng.choice([1, 8, 24])
    x, scales, bias = (normal.standard_normal(size).astype(np.float32) for size in ((2, k), n, n))
    return [x, normal.integers(-127, 128, (k, n)).astype(np.int8), scales, np.zeros(n, np.int8), bias], {}


def skip_norm(rng: random.Random, normal: np.random.Generator) -> tuple[Operands, dict[str, Any]]:
    shape = (rng.choice([0, 1, 2]), 3, 16)
    return [normal.standard_normal(size).astype(np.float32) for size in (shape, shape, 16, 16)], {"epsilon": 1e-6}


MICROSOFT: dict[str, Template] = {
    "com.microsoft.GroupQueryAttention": group_query_attention,
    "com.microsoft.MatMulNBits": matmul_nbits,
    "com.microsoft.GatherBlockQuantized": gather_block_quantized,
    "com.microsoft.DynamicQuantizeMatMul": dynamic_quantize_matmul,
    "com.microsoft.SkipSimplifiedLayerNormalization": skip_norm,
}


def altered(template: Template, rng: random.Random) -> tuple[Operands, dict[str, Any]]:
    """Draw a valid node and change some of its integers, sizes and attributes."""
    arrays, attributes = template(rng, np.random.default_rng(rng.randrange(2**31)))
    for i, value in enumerate(arrays):
        if value.dtype in (np.int32, np.int64) and value.size and rng.random() < 0.3:
            fits = [number for number in EXTREME if np.iinfo(value.dtype).min <= number <= np.iinfo(value.dtype).max]
            value.flat[rng.randrange(value.size) if rng.random() < 0.5 else slice(None)] = rng.choice(fits)
        elif value.ndim and rng.random() < 0.05:
            axis = rng.randrange(value.ndim)
            arrays[i] = np.resize(value, (*value.shape[:axis], rng.choice(AXES), *value.shape[axis + 1 :]))
    for name in attributes:
        if rng.random() < 0.2:
            attributes[name] = rng.choice([0, 0, 0, *EXTREME]) if isinstance(attributes[name], int) else 1e30
    return arrays[: len(arrays) - rng.choice([0, 0, 0, 1, 2])], attributes


def random_node(name: str, step: int, rng: random.Random) -> tuple[onnx.NodeProto, list[np.ndarray]]:
    """Draw a node and the values of its inputs, with the names x<step>_<input>."""
    inputs, outputs, attributes = table()[name]
    domain, _, kind = name.rpartition(".")
    if name in MICROSOFT:
        given, chosen = altered(MICROSOFT[name], rng)
    else:
        inputs = random_inputs(inputs, rng)
        given = operands(kind, inputs, rng)
        chosen = {each: random_value(attributes[each], rng) for each in attributes if rng.random() < 0.8}
    names = [f"x{step}_{i}" for i in range(len(given))]
    for i in range(1, len(given)):
        if (i >= len(inputs) or inputs[i][-1] in "?~") and rng.random() < 0.2:
            names[i] = ""
    count = 3 if "N" in outputs else int(outputs.rstrip("?")[-1])
    return helper.make_node(kind, names, [f"y{step}_{i}" for i in range(count)], domain=domain, **chosen), given


def random_graph(rng: random.Random) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Make a graph with one or two nodes and the values to feed it with."""
    constants, feeds, nodes = [], {}, []
    for step in range(rng.choice([1, 1, 2])):
        name = rng.choice(list(table() if step or rng.random() < 0.7 else MICROSOFT))
        node, given = random_node(name, step, rng)
        for i, value in enumerate(given):
            is_list = table()[name][0][i : i + 1] and table()[name][0][i].startswith("[")
            if is_list or (name in MICROSOFT and i) or rng.random() < 0.5:
                constants.append(numpy_helper.from_array(value, f"x{step}_{i}"))
            else:
                feeds[f"x{step}_{i}"] = value
        if step and rng.random() < 0.8:
            node.input[0] = nodes[-1].output[0]
        nodes.append(node)
    ports = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)
        for name, value in feeds.items()
    ]
    results = [onnx.ValueInfoProto(name=name) for name in nodes[-1].output]
    graph = helper.make_graph(nodes, "g", ports, results, constants)
    opsets = [helper.make_opsetid("", rng.choice(OPSETS)), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10), feeds


def assert_same(want: dict[str, np.ndarray], got: dict[str, np.ndarray]) -> None:
    for name, value in want.items():
        if value.size == 0:  # ONNX Runtime keeps axes of empty reductions
            continue
        assert (value.dtype, value.shape) == (got[name].dtype, got[name].shape), name
        if value.dtype == np.float32:
            finite = np.isfinite(value) & np.isfinite(got[name]) & (np.abs(value) < 1e15)
            largest = np.abs(value[finite]).max(initial=0)
            np.testing.assert_allclose(got[name][finite], value[finite], rtol=0.01, atol=0.01 * largest + 1e-5)
        else:
            np.testing.assert_array_equal(got[name], value)


def run(seed: int, first: int, count: int, seconds: float, folder: Path) -> None:
    """Run `count` graphs, or as many as fit into `seconds`. Print the number of each before it runs."""
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    end, ran = time.monotonic() + seconds, 0
    for number in range(first, first + count):
        if time.monotonic() > end:
            break
        graph, feeds = random_graph(random.Random(f"{seed} {number}"))
        (folder / "nodes.onnx").write_bytes(graph.SerializeToString())
        print(f"seed {seed}, graph {number}:", *(node.op_type for node in graph.graph.node), flush=True)
        signal.alarm(ALARM_SECONDS)  # ends the process
        found = []
        for engine in (runtime(), None):
            with contextlib.suppress(GraphError, RuntimeError, MemoryError, TypeError, ValueError):
                found.append(Session(engine, str(folder / "nodes.onnx"), 1, custom_int8=engine is None).run(feeds))
        ran += bool(found)
        # 1.23's Min is wrong for int64 beyond 32 bits.
        if len(found) == 2 and VERSION > (1, 23) and ROUGH.isdisjoint(node.op_type for node in graph.graph.node):
            assert_same(*found)
    print("ran", ran, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=session_seed())
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=2**31)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(args.seed, args.first, args.count, args.seconds, Path(folder))


if __name__ == "__main__":
    main()
