"""`python -m tests.engines.native.random_nodes SEED COUNT FOLDER FIRST`: graphs of one or two random operators.

Each has operators that untrusted graphs may have, with odd shapes, types, numbers and attributes. It runs or fails with
an error, within SECONDS. FOLDER contains the graph while it runs.
"""

from __future__ import annotations

import random
import re
import resource
import signal
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.engines.native import Session, runtime

TABLE = Path(__file__).parents[3] / "engines" / "graphs" / "allowed_operators.cpp"
SHAPED = "Expand Gather GatherND ReduceL2 ReduceLogSumExp ReduceMean ReduceSum Reshape Slice Split Squeeze Tile TopK"
SHAPED += " Unsqueeze"  # operators whose later inputs are sizes, axes or positions
EXTREME = [0, 1, -1, 2, 3, 7, 1000, 2**16, 2**31 - 1, -(2**31), 2**31, 2**40, 2**62, 2**63 - 1, -(2**63)]
AXES = [0, 1, 1, 1, 2, 2, 3, 4, 5, 17]
TYPES = [np.float16, np.int32, np.int64, np.int8, np.uint8, np.bool_]
SECONDS, BYTES = 60, 6 << 30
OPSETS = [13, 17, 18, 19, 20, 20, 20, 20, 21, 24]


@cache
def table() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Read the core's tables: operator -> inputs, outputs, attributes; attribute -> type, values."""
    tables = re.findall(r'R"\((.*?)\)"', TABLE.read_text(), re.DOTALL)
    parsed = [{name: words for name, *words in map(str.split, part.strip().splitlines())} for part in tables]
    return parsed[0], parsed[-1]


def random_attribute(name: str, rng: random.Random) -> Any:
    kind, *values = table()[1][name]
    if kind == "float":
        return rng.choice([0.0, 1.0, -1.0, 1e-6, 1e30, -1e30])
    if kind == "text":
        return rng.choice(values)
    low, high = map(int, values)

    def number() -> int:
        edges = [low, high, 0, 1, 2, rng.randint(low, min(high, low + 8))]
        return min(high, max(low, rng.choice(edges)))

    return number() if kind == "int" else [number() for _ in range(rng.choice([1, 2, 2, 2, 3, 4, 4]))]


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


def operands(kind: str, count: int, rng: random.Random) -> list[np.ndarray]:
    dtype = np.float32 if rng.random() < 0.7 else rng.choice(TYPES)
    first = array(rng, np.bool_ if kind == "Where" and rng.random() < 0.9 else dtype, random_shape(rng))
    rest = []
    for _ in range(count - 1):
        if kind in SHAPED.split() and rng.random() < 0.95:
            rest.append(array(rng, np.int64, rng.choice([(), (0,), (1,), (1,), (2,), (first.ndim,), (3, 1), (2, 3)])))
        else:
            other = dtype if rng.random() < 0.85 else rng.choice(TYPES)
            rest.append(array(rng, other, random_shape(rng, first.shape)))
    return [first, *rest]


def random_graph(rng: random.Random) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Make a graph with one or two nodes and the values to feed it with."""
    constants, feeds, nodes, values = [], {}, [], []
    for step in range(rng.choice([1, 1, 2])):
        name = rng.choice(list(table()[0]))
        inputs, outputs, *attributes = table()[0][name]
        domain, _, kind = name.rpartition(".")
        low, _, high = inputs.rstrip("?").partition("-")
        most = 3 if (high or low) == "N" else int(high or low)
        given = operands(kind, rng.randint(int(low) if low != "N" else 1, most), rng)
        names = []
        for i, value in enumerate(given):
            names.append(f"x{step}_{i}")
            if rng.random() < 0.5:
                constants.append(numpy_helper.from_array(value, names[-1]))
            else:
                feeds[names[-1]] = value
            if i and "?" in inputs and rng.random() < 0.2:
                names[-1] = ""
        if step and rng.random() < 0.8:
            names[0] = values[0]
        count = 3 if "N" in outputs else int(outputs.rstrip("?")[-1])
        values = [f"y{step}_{i}" for i in range(count)]
        chosen = {each: random_attribute(each, rng) for each in attributes if rng.random() < 0.6}
        nodes.append(helper.make_node(kind, names, values, domain=domain, **chosen))
    ports = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)
        for name, value in feeds.items()
    ]
    results = [onnx.ValueInfoProto(name=name) for name in values]
    graph = helper.make_graph(nodes, "g", ports, results, constants)
    opsets = [helper.make_opsetid("", rng.choice(OPSETS)), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10), feeds


def main(seed: int, count: int, folder: Path, first: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    ran = 0
    for number in range(first, count):
        graph, feeds = random_graph(random.Random(f"{seed} {number}"))
        (folder / "nodes.onnx").write_bytes(graph.SerializeToString())
        print(number, *(node.op_type for node in graph.graph.node), flush=True)
        signal.alarm(SECONDS)  # ends the process
        try:
            Session(runtime(), str(folder / "nodes.onnx"), 1).run(feeds)
            ran += 1
        except (RuntimeError, MemoryError, TypeError, ValueError):
            pass
    print("ran", ran, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
