"""What a stranger's graph may cost is bounded by the size of its files, whichever runtime opens it."""

import itertools
import os
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blip2rt.errors import BackendError
from tests.engines.native import GraphError, Session, runtime

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper

OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
ENGINES = pytest.mark.parametrize("engine", [runtime, lambda: None], ids=["ort", "core"])


def save(folder: Path, nodes: list[Any], constants: dict[str, np.ndarray], outputs: tuple[str, ...] = ("y",)) -> str:
    """A graph from x (B, n) to outputs of any shape."""
    any_shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "n"])
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    held = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "bounds", [any_shape], made, held)
    path = folder / "bounds.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=OPSETS, ir_version=9).SerializeToString())
    return str(path)


def endless(folder: Path, count: int = 400) -> str:
    """Products that take minutes of a machine's time."""
    names = ["x", *(f"p{i}" for i in range(count)), "y"]
    nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in itertools.pairwise(names)]
    return save(folder, nodes, {"w": np.eye(512, dtype=np.float32)})


def opens_or_is_refused(engine: Any, path: str) -> None:
    """ONNX Runtime opens a graph without folding; the core has to fold, and refuses what exceeds the budget."""
    try:
        Session(engine, path, 1, files={})
    except GraphError as error:
        assert engine is None
        assert "cost more memory than a graph of this size may take" in str(error)
    else:
        assert engine is not None


def timed(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@ENGINES
def test_a_run_stops_at_its_deadline_and_the_next_one_works(tmp_path: Path, engine: Any) -> None:
    session = Session(engine(), endless(tmp_path), 1, files={}, run_timeout=0.5)
    rows = np.ones((20_000, 512), np.float32)

    def runs_too_long(_: int) -> None:
        with pytest.raises(BackendError, match="bounds.onnx ran longer than run_timeout allows: raise it"):
            session.run({"x": rows})

    with ThreadPoolExecutor(2) as threads:
        assert timed(lambda: list(threads.map(runs_too_long, range(2)))) < 10
    assert np.array_equal(session.run({"x": rows[:2]})["y"], rows[:2])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks")
@ENGINES
def test_a_fork_keeps_its_deadlines(tmp_path: Path, engine: Any) -> None:
    path, rows = endless(tmp_path), np.ones((20_000, 512), np.float32)
    Session(engine(), path, 1, files={}, run_timeout=60).run({"x": rows[:2]})
    child = os.fork()
    if child == 0:
        try:
            Session(engine(), path, 1, files={}, run_timeout=0.5).run({"x": rows})
        except BackendError as error:
            os._exit(0 if "ran longer" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@ENGINES
def test_folded_constants_have_a_budget(tmp_path: Path, engine: Any) -> None:
    """19 GB, if each constant that a node reads were computed when the graph is opened."""
    nodes = [helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64)]
    for i in range(300):
        nodes.append(helper.make_node("Expand", [f"v{i}", "size"], [f"c{i}"]))
        nodes.append(helper.make_node("Gather", [f"c{i}", "i"], [f"g{i}"]))
        nodes.append(helper.make_node("Add", [f"s{i - 1}" if i else "x", f"g{i}"], [f"s{i}"]))
    nodes.append(helper.make_node("Identity", ["s299"], ["y"]))
    values = {f"v{i}": np.full(1, i, np.float32) for i in range(300)}  # equal nodes would be merged
    path = save(tmp_path, nodes, {**values, "size": np.array([16 << 20], np.int64)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert timed(lambda: opens_or_is_refused(engine(), path)) < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


@ENGINES
def test_a_chain_of_casts_is_within_the_budget(tmp_path: Path, engine: Any) -> None:
    names = ["c", *(f"c{i}" for i in range(2000))]
    nodes = [
        helper.make_node("Cast", [a], [b], to=TensorProto.FLOAT if i % 2 else TensorProto.INT64)
        for i, (a, b) in enumerate(itertools.pairwise(names))
    ]
    nodes += [helper.make_node("Add", ["x", names[-1]], ["y"])]
    path = save(tmp_path, nodes, {"c": np.ones((1 << 20, 1), np.float32)})
    assert timed(lambda: opens_or_is_refused(engine(), path)) < 2


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
@pytest.mark.parametrize("folded", ["LayerNormalization", "Neg"])
def test_products_of_8_bits_are_right_beside_folded_constants(tmp_path: Path, engine: Any, folded: str) -> None:
    """ONNX Runtime 1.32 multiplies wrong if scales are computed in the run: it folds the constants, or refuses."""
    k, n, block, rng = 40, 32, 64, np.random.default_rng(0)
    codes, zeros = (rng.integers(0, 256, shape, np.uint8) for shape in ((n, 1, block), (n, 1)))
    scales = (rng.random((n, 1)) * 0.02 + 0.001).astype(np.float16)
    constants = {"codes": codes, "scales": scales, "zeros": zeros, "c": np.ones(k, np.float32)}
    product = {"K": k, "N": n, "bits": 8, "block_size": block, "accuracy_level": 4, "domain": "com.microsoft"}
    nodes = [
        helper.make_node(folded, ["c", "c"][: 1 + (folded != "Neg")], ["b"]),
        helper.make_node("Add", ["x", "b"], ["a"]),
        helper.make_node("Unsqueeze", ["a", "first"], ["rows"]),
        helper.make_node("Cast", ["scales"], ["s"], to=TensorProto.FLOAT),
        helper.make_node("MatMulNBits", ["rows", "codes", "s", "zeros"], ["y"], **product),
    ]
    path = save(tmp_path, nodes, {**constants, "first": np.zeros(1, np.int64)})
    x = rng.standard_normal((17, k), np.float32)
    try:
        [found] = Session(engine(), path, 1, files={}).run({"x": x})["y"]
    except GraphError as error:
        assert folded == "Neg" and "8-bit weights beside constants that cost much to compute" in str(error)
        return
    weight = ((codes[:, 0, :k].astype(np.float32) - zeros) * scales).T
    wanted = (x - (folded == "Neg")) @ weight
    assert np.abs(found - wanted).max() < 0.03 * np.abs(wanted).max()


@ENGINES
def test_graphs_with_thousands_of_outputs_are_refused(tmp_path: Path, engine: Any) -> None:
    names = tuple(f"y{i}" for i in range(5000))
    path = save(tmp_path, [helper.make_node("Neg", ["x"], [name]) for name in names], {}, names)
    with pytest.raises(GraphError, match="it has 5000 outputs, more than 4096"):
        Session(engine(), path, 1, files={})
