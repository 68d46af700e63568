"""What a stranger's graph may cost is bounded by the size of its files, whichever runtime opens it."""

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engines.native import GraphError, Session, runtime

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper

ENGINES = pytest.mark.parametrize("engine", [runtime, lambda: None], ids=["ort", "core"])


def save(folder: Path, nodes: list[Any], constants: dict[str, np.ndarray], outputs: tuple[str, ...] = ("y",)) -> str:
    """A graph from x (B, n) to outputs of any shape."""
    any_shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "n"])
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    held = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "bounds", [any_shape], made, held)
    path = folder / "bounds.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    )
    return str(path)


def endless(folder: Path, count: int = 400) -> str:
    """Products that take minutes of a machine's time."""
    names = ["x", *(f"p{i}" for i in range(count)), "y"]
    nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in itertools.pairwise(names)]
    return save(folder, nodes, {"w": np.eye(512, dtype=np.float32)})


def timed(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@ENGINES
def test_a_run_stops_at_its_deadline_and_the_next_one_works(tmp_path: Path, engine: Any) -> None:
    session = Session(engine(), endless(tmp_path), 1, files={}, run_timeout=0.5)
    rows = np.ones((20_000, 512), np.float32)

    def runs_too_long() -> None:
        with pytest.raises(Exception, match="bounds.onnx ran longer than run_timeout allows: raise it"):
            session.run({"x": rows})

    threads = [threading.Thread(target=runs_too_long) for _ in range(2)]
    assert timed(lambda: [each.start() for each in threads] and [each.join() for each in threads]) < 10
    assert np.array_equal(session.run({"x": rows[:2]})["y"], rows[:2])


@ENGINES
def test_folded_constants_have_a_budget(tmp_path: Path, engine: Any) -> None:
    nodes = [helper.make_node("Expand", ["one", "size"], [f"c{i}"]) for i in range(300)]
    nodes += [helper.make_node("Neg", ["x"], ["y"])]
    path = save(tmp_path, nodes, {"one": np.ones(1, np.float32), "size": np.array([16 << 20], np.int64)})
    began = time.perf_counter()
    try:
        Session(engine(), path, 1, files={}).run({"x": np.ones((1, 2), np.float32)})
    except GraphError as error:
        assert "cost more memory than a graph of this size may take" in str(error)
    assert time.perf_counter() - began < 5


@ENGINES
def test_a_chain_of_casts_is_within_the_budget(tmp_path: Path, engine: Any) -> None:
    names = ["c", *(f"c{i}" for i in range(2000))]
    nodes = [
        helper.make_node("Cast", [a], [b], to=TensorProto.FLOAT if i % 2 else TensorProto.INT64)
        for i, (a, b) in enumerate(itertools.pairwise(names))
    ]
    nodes += [helper.make_node("Add", ["x", names[-1]], ["y"])]
    path = save(tmp_path, nodes, {"c": np.ones((1 << 20, 1), np.float32)})

    def open_session() -> None:
        try:
            Session(engine(), path, 1, files={})
        except GraphError as error:
            assert "cost more memory than a graph of this size may take" in str(error)

    assert timed(open_session) < 2


@ENGINES
def test_opening_is_linear_in_folded_nodes(tmp_path: Path, engine: Any) -> None:
    names = ["c", *(f"c{i}" for i in range(49_000))]
    nodes = [helper.make_node("Neg", [a], [b]) for a, b in itertools.pairwise(names)]
    path = save(tmp_path, [*nodes, helper.make_node("Add", ["x", names[-1]], ["y"])], {"c": np.ones(2, np.float32)})
    began = time.perf_counter()
    session = Session(engine(), path, 1, files={})
    assert time.perf_counter() - began < 10
    assert np.array_equal(session.run({"x": np.ones((1, 2), np.float32)})["y"], np.full((1, 2), 2, np.float32))


@ENGINES
def test_graphs_with_thousands_of_outputs_are_refused(tmp_path: Path, engine: Any) -> None:
    names = tuple(f"y{i}" for i in range(5000))
    path = save(tmp_path, [helper.make_node("Neg", ["x"], [name]) for name in names], {}, names)
    with pytest.raises(GraphError, match="it has 5000 outputs, more than 4096"):
        Session(engine(), path, 1, files={})
