"""Operators whose operands ONNX Runtime does not check are rejected unless they fit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.engines.native import GraphError, Session, check_graph, runtime
from tests.seeds import new_seed

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper

from tests.engines.native import graphs

Change = Callable[[onnx.ModelProto], object]


def save(model: onnx.ModelProto, folder: Path) -> str:
    path = folder / "odd.onnx"
    path.write_bytes(model.SerializeToString())
    return str(path)


def assert_rejected(model: onnx.ModelProto, folder: Path, error: str) -> None:
    with pytest.raises(GraphError, match=f"odd.onnx is rejected: {error}"):
        check_graph(save(model, folder))


def decoder() -> onnx.ModelProto:
    return graphs.decoder(np.random.default_rng(new_seed()), crosses=False)


def attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto:
    return next(each for each in node.attribute if each.name == name)


def constant(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def keep(model: onnx.ModelProto, name: str, count: int) -> None:
    """Keep the first rows of a constant."""
    array = numpy_helper.to_array(constant(model, name))
    constant(model, name).CopyFrom(numpy_helper.from_array(array[:count], name))


def feed(model: onnx.ModelProto, name: str, remove: bool = False) -> None:
    """Make a constant a graph input too, or instead."""
    tensor = constant(model, name)
    model.graph.input.append(graphs.value(name, list(tensor.dims), tensor.data_type))
    if remove:
        model.graph.initializer.remove(tensor)


def add_zeros(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(96, np.int8), "zeros"))
    model.graph.node[1].input[3] = "zeros"


def nest(model: onnx.ModelProto, outer: int) -> None:
    """Copy the product into a subgraph of node `outer`."""
    inner = helper.make_graph([model.graph.node[1]], "inner", [], [])
    model.graph.node[outer].attribute.append(onnx.AttributeProto(name="a", g=inner))


def double(model: onnx.ModelProto, name: str) -> None:
    attribute(model.graph.node[1], name).i *= 2


def cast_zeros(model: onnx.ModelProto) -> None:
    """Zero points become numbers, of which there are then too few."""
    model.graph.node.insert(0, helper.make_node("Cast", ["zeros"], ["numbers"], to=TensorProto.FLOAT))
    model.graph.node[2].input[3] = "numbers"


FAULTS: dict[str, tuple[str, Change]] = {  # ONNX Runtime up to 1.25 reads out of bounds
    "n": ("int4", lambda m: double(m, "N")),
    "block": ("int4", lambda m: double(m, "block_size")),
    "cast": ("int4", cast_zeros),
    "fed codes": ("int4", lambda m: feed(m, "codes", remove=True)),
    "nested int4": ("int4", lambda m: nest(m, 0)),
    **{name: ("int4", lambda m, name=name: keep(m, name, -1)) for name in ("codes", "zeros", "scales")},
    "no codes": ("int8", lambda m: m.graph.node[1].input.__setitem__(1, "x")),
    "wrong permutation": ("int8", lambda m: m.graph.node[0].attribute[0].ints.__setitem__(slice(None), [0, 1])),
    "added zeros": ("int8", add_zeros),
    "half of the scales": ("int8", lambda m: keep(m, "scales", 48)),
    "short bias": ("int8", lambda m: keep(m, "bias", 48)),
    "bias of one number": ("int8", lambda m: keep(m, "bias", 1)),
    "fed bias": ("int8", lambda m: feed(m, "bias")),
    "nested int8": ("int8", lambda m: nest(m, 3)),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_unfitting_products_are_rejected(fault: str, tmp_path: Path) -> None:
    kind, change = FAULTS[fault]
    model = graphs.GRAPHS[kind](np.random.default_rng(new_seed()))
    change(model)
    assert_rejected(model, tmp_path, ".*its weights do not fit (its sizes|each other)|node .*: it has ")


@pytest.mark.parametrize("transposed", [True, False])
def test_fitting_int8_products_load(transposed: bool, tmp_path: Path) -> None:
    model = graphs.int8(np.random.default_rng(new_seed()))
    if not transposed:
        codes = constant(model, "codes")
        codes.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(codes).T), "columns"))
        del model.graph.node[0]
    x = np.ones((1, graphs.DEFAULT.positions, graphs.DEFAULT.k), np.float32)
    assert np.isfinite(Session(runtime(), save(model, tmp_path), 1).run({"x": x})["y"]).all()


@pytest.mark.parametrize("axes", ["last_index", "none", None])
def test_unsafe_gathers_are_rejected(axes: str | None, tmp_path: Path) -> None:
    model = decoder()
    index, gather = graphs.node(model, "Unsqueeze"), graphs.node(model, "GatherND")
    gather.attribute[0].i, gather.input[0] = 0, "head"
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(0, np.int64), "none"))
    if axes:
        index.input[1] = axes
    else:
        gather.input[1] = "last_index"
    assert_rejected(model, tmp_path, r"node .*(constant table|input 1 is not a constant list of integers)")


def gather(folder: Path, hidden: np.ndarray, index: np.ndarray) -> np.ndarray:
    shapes = [None] * hidden.ndim, [None] * index.ndim
    ports = [graphs.value("hidden", shapes[0]), graphs.value("index", shapes[1], TensorProto.INT64)]
    node = graphs.op("GatherND", "hidden index", "row", batch_dims=1)
    model = graphs.model([node], ports, [graphs.value("row", None)], {})
    return Session(runtime(), save(model, folder), 1).run({"hidden": hidden, "index": index})["row"]


@pytest.mark.parametrize("rank", [2, 3])
def test_gathers_take_one_row_each(rank: int, tmp_path: Path) -> None:
    hidden = np.random.default_rng(new_seed()).standard_normal((2, 5, 3)).astype(np.float32)
    index = np.array([4, -2]).reshape(2, *[1] * (rank - 1))
    row = gather(tmp_path, hidden, index)
    np.testing.assert_array_equal(row, hidden[[0, 1], [4, 3]].reshape(2, *[1] * (rank - 2), 3))


BAD_GATHERS = {  # shape of hidden, index
    "fewer rows of indices": ((4, 3, 2), [[0], [1]]),
    "more rows of indices": ((2, 3, 2), [[0], [1], [2]]),
    "turned indices": ((2, 3, 2), [[0, 1]]),
    "no rows": ((0, 3, 2), [[0]]),
    "no positions": ((1, 0, 2), [[0]]),
    "outside": ((1, 3, 2), [[3]]),
    "far outside": ((1, 3, 2), [[-(2**63)]]),
    "two axes": ((1, 3), [[0]]),
    "one axis of indices": ((1, 3, 2), [0]),
}


@pytest.mark.parametrize("case", list(BAD_GATHERS))
def test_unfitting_gathers_raise(case: str, tmp_path: Path) -> None:
    """ONNX Runtime before 1.24 divides by zero, or reads out of bounds."""
    shape, index = BAD_GATHERS[case]
    with pytest.raises(RuntimeError, match="last_index"):
        gather(tmp_path, np.zeros(shape, np.float32), np.array(index))


def table(**attributes: int) -> onnx.ModelProto:
    """ids (B) -> rows of a table in blocks."""
    node = helper.make_node("GatherBlockQuantized", ["codes", "ids", "scales", "zeros"], ["y"], domain="com.microsoft")
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    constants = {"codes": np.zeros((7, 32), np.uint8), "scales": np.ones((7, 2), np.float32)}
    constants["zeros"] = np.zeros((7, 2), np.uint8)
    ids = graphs.value("ids", ["B"], TensorProto.INT64)
    return graphs.model([node], [ids], [graphs.value("y", None)], constants)


GQA = "GroupQueryAttention"
ATTRIBUTES = [("int8", "Split", "num_outputs", number) for number in (1, 2, 4, -1)]
ATTRIBUTES += [("llm", GQA, name, number) for name in ("num_heads", "kv_num_heads") for number in (0, -1, 2**31, 2**32)]


@pytest.mark.parametrize(("kind", "node", "name", "number"), ATTRIBUTES)
def test_attributes_that_fit_nothing_are_rejected(kind: str, node: str, name: str, number: int, tmp_path: Path) -> None:
    """ONNX Runtime before 1.30 aborted or divided by zero."""
    model = graphs.GRAPHS[kind](np.random.default_rng(new_seed()))
    attribute(graphs.node(model, node), name).i = number
    faults = rf"its attribute '{name}' is {number}|it has different numbers of parts and outputs"
    assert_rejected(model, tmp_path, rf".*\({node}\): ({faults})")


INPUTS = [("llm", GQA, 5, np.array([number], np.int32), "the core cannot") for number in (5000, -(10**6), 20, 1)]
INPUTS += [("llm", GQA, 9, np.array([[10**6]]), "it has input 9")]
INPUTS += [("int4", "MatMulNBits", 4, np.full(graphs.DEFAULT.k, 10**6, np.int32), "it has 5 inputs")]


@pytest.mark.parametrize(("kind", "name", "index", "values", "fault"), INPUTS)
def test_constants_that_onnx_runtime_trusts_are_rejected(
    kind: str, name: str, index: int, values: np.ndarray, fault: str, tmp_path: Path
) -> None:
    model = graphs.GRAPHS[kind](np.random.default_rng(new_seed()))
    node = graphs.node(model, name)
    node.input.extend([""] * (index + 1 - len(node.input)))
    node.input[index] = "given"
    model.graph.initializer.append(numpy_helper.from_array(values, "given"))
    assert_rejected(model, tmp_path, rf".*\({name}\): {fault}")


@pytest.mark.parametrize("block", [0, 8, 24, 32, -16, 2**20])
def test_tables_that_do_not_fit_their_blocks_are_rejected(block: int, tmp_path: Path) -> None:
    """ONNX Runtime up to 1.29 divides by a block size of 0."""
    fitting = {"bits": 8, "quantize_axis": 1, "gather_axis": 0}
    check_graph(save(table(block_size=16, **fitting), tmp_path))
    faults = r".*\(GatherBlockQuantized\): its (attribute 'block_size' is|table does not fit)"
    assert_rejected(table(block_size=block, **fitting), tmp_path, faults)


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_sums_before_a_norm_broadcast(rows: int, tmp_path: Path) -> None:
    """ONNX Runtime's SkipSimplifiedLayerNormalization divides by zero if there is nothing to add."""
    node = graphs.op("SkipSimplifiedLayerNormalization", "x more w", "y mean deviation sum", epsilon=1e-5)
    node.domain = "com.microsoft"
    rng = np.random.default_rng(new_seed())
    x, w, more = (rng.normal(size=size).astype(np.float32) for size in ((1, 3, 8), 8, (rows, 3, 8)))
    inputs = [graphs.value(name, [size, "S", 8]) for name, size in (("x", "A"), ("more", "M"))]
    outputs = [graphs.value(name, None) for name in ("y", "sum")]
    path = save(graphs.model([node], inputs, outputs, {"w": w}), tmp_path)
    got = Session(runtime(), path, 1).run({"x": x, "more": more})
    added = x + more
    np.testing.assert_array_equal(got["sum"], added)
    np.testing.assert_allclose(got["y"], w * added / np.sqrt((added**2).mean(-1, keepdims=True) + 1e-5), rtol=1e-4)
