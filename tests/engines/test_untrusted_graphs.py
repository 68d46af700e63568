"""Graphs are untrusted: none can make the core read foreign memory or other files, or end the process."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engines.native import GraphError, Session, check_graph, runtime
from tests.seeds import new_seed

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper

from tests.engines.native import graphs
from tests.tiny.bundle import build_graphs, random_weights

ROOT = Path(__file__).parents[2]
Change = Callable[[onnx.ModelProto], object]


@pytest.mark.long(6, "hundreds of altered graphs")
def test_random_and_altered_graphs_fail_or_are_right() -> None:
    from tests.fuzz.operators import run

    assert "ran " in run(new_seed(), count=350)


@pytest.mark.long(4, "hundreds of graphs with random operators")
def test_no_allowed_operator_ends_the_process(tmp_path: Path) -> None:
    seed = new_seed()
    command = [sys.executable, "-m", "tests.fuzz.nodes", "--seed", str(seed), "--count", "800"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    *_, last = done.stdout.splitlines()
    assert done.returncode == 0, f"seed {seed}, graph {last}: {done.returncode} {done.stderr[-2000:]}"
    assert int(last.split()[1]) > 100, "too few graphs run"


def save(folder: Path, change: Change) -> str:
    """The int4 graph with its codes in product.data, changed."""
    model = graphs.int4(np.random.default_rng(new_seed()))
    codes = model.graph.initializer[0]
    (folder / "product.data").write_bytes(bytes(64) + codes.raw_data)
    length = len(codes.raw_data)
    codes.ClearField("raw_data")
    codes.data_location = TensorProto.EXTERNAL
    for key, text in (("location", "product.data"), ("offset", "64"), ("length", str(length))):
        codes.external_data.add(key=key, value=text)
    change(model)
    path = folder / "product.onnx"
    path.write_bytes(model.SerializeToString())
    return str(path)


def set_entry(model: onnx.ModelProto, name: str, text: str) -> None:
    next(each for each in first(model).external_data if each.key == name).value = text


def test_valid_graphs_load(tmp_path: Path) -> None:
    path = save(tmp_path, lambda model: None)
    size = (tmp_path / "product.data").stat().st_size
    check_graph(path)
    check_graph(path, {"product.data": size, "product.onnx": 1})
    Session(runtime(), path, 1, files={"product.data": size})
    with pytest.raises(GraphError, match=r"product.onnx is rejected: tensor 'codes': .*the manifest does not list"):
        check_graph(path, {"other.data": size})
    with pytest.raises(GraphError, match=rf"which has {size} bytes instead of {size + 1}"):
        Session(runtime(), path, 1, files={"product.data": size + 1})


OUTSIDE = ["../product.data", "/etc/passwd", "sub/product.data", "", ".", "..", "a\\product.data", "link.data"]
OUTSIDE += ["folder", "*/_ORT_MEM_ADDR_/*", "_ORT_MEM_ADDR_:*", "hard/../product.data", "missing.data", "pipe", "a\0"]
INVALID = {
    "location": OUTSIDE,
    "offset": ["-1", "65", "0x10", "", "18446744073709551615", " 64"],
    "length": ["1", "99999", "-1", "1e3"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in INVALID.items() for text in texts])
def test_external_data_stays_in_the_bundle(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.data").symlink_to("product.data")
    os.mkfifo(tmp_path / "pipe")
    path = save(tmp_path, lambda model: set_entry(model, name, text))
    files = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    for allowed in (None, files):
        with pytest.raises(GraphError, match="product.onnx is rejected: tensor 'codes': external data") as error:
            Session(runtime(), path, 1, files=allowed)
        assert len(str(error.value).splitlines()) == 1


def outside() -> onnx.TensorProto:
    tensor = TensorProto(name="secret", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    return tensor


def in_graph(*nodes: onnx.NodeProto, tensors: tuple[onnx.TensorProto, ...] = ()) -> onnx.GraphProto:
    return helper.make_graph(nodes, "inner", [], [], tensors)


def in_sparse() -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=outside(), indices=outside(), dims=[1])


def add_attribute(model: onnx.ModelProto, **parts: object) -> None:
    model.graph.node[0].attribute.append(onnx.AttributeProto(name="a", **parts))


def add_function(model: onnx.ModelProto, *nodes: onnx.NodeProto, domain: str = "d") -> None:
    model.functions.append(helper.make_function(domain, "f", [], [], nodes, []))


def first(model: onnx.ModelProto) -> onnx.TensorProto:
    return model.graph.initializer[0]


def node(kind: str, inputs: str, outputs: str = "z", **attributes: Any) -> onnx.NodeProto:
    made = graphs.op(kind, inputs, outputs, **attributes)
    made.output[:] = ["" if name == "_" else name for name in made.output]
    return made


def loop_port(name: str) -> Change:
    return lambda model: model.graph.input.append(graphs.value(name, ["B"], TensorProto.INT32))


OURS = helper.make_node("MatMulInt4", ["x"], ["z"], domain="blip2rt")
HIDDEN: dict[str, Change] = {
    "initializer": lambda m: m.graph.initializer.append(outside()),
    "sparse initializer": lambda m: m.graph.sparse_initializer.append(in_sparse()),
    "t": lambda m: add_attribute(m, t=outside()),
    "tensors": lambda m: add_attribute(m, tensors=[outside()]),
    "sparse_tensor": lambda m: add_attribute(m, sparse_tensor=in_sparse()),
    "sparse_tensors": lambda m: add_attribute(m, sparse_tensors=[in_sparse()]),
    "g": lambda m: add_attribute(m, g=in_graph(tensors=(outside(),))),
    "graphs": lambda m: add_attribute(m, graphs=[in_graph(tensors=(outside(),))]),
    "function": lambda m: add_function(m, helper.make_node("Constant", [], ["c"], value=outside())),
    "training": lambda m: m.training_info.append(onnx.TrainingInfoProto(algorithm=in_graph(tensors=(outside(),)))),
    "without location": lambda m: first(m).ClearField("data_location") or set_entry(m, "location", "../s"),
    "without entries": lambda m: first(m).ClearField("external_data"),
    "inline and external": lambda m: setattr(first(m), "raw_data", b"1"),
    "twice": lambda m: first(m).external_data.add(key="location", value="product.data"),
    "prepacked": lambda m: first(m).external_data.add(key="prepacked_0", value="x"),
}
OWN_DOMAIN: dict[str, Change] = {
    "own node": lambda m: m.graph.node.append(OURS),
    "own inner": lambda m: add_attribute(m, g=in_graph(OURS)),
    "own function node": lambda m: add_function(m, OURS),
    "own opset": lambda m: m.opset_import.append(helper.make_opsetid("blip2rt", 1)),
    "own function": lambda m: add_function(m, domain="blip2rt"),
}
REJECTED: dict[str, tuple[Change, str]] = {
    **{name: (change, "tensor '(secret|codes)': ") for name, change in HIDDEN.items()},
    **{name: (change, "it uses operators of the domain 'blip2rt'") for name, change in OWN_DOMAIN.items()},
    **{name: (loop_port(name), ".*an input that is reserved for the loop") for name in ("cache_rows", "encoder_rows")},
    "domain twice": (lambda m: m.opset_import.append(m.opset_import[0]), ".*it imports a domain twice"),
    "domain": (lambda m: m.graph.node.append(helper.make_node("F", ["x"], ["z"], domain="d")), "it uses the domain"),
    "a function": (add_function, "it has functions"),
    "empty training": (lambda m: m.training_info.add(), "it has functions or training graphs"),
    "shapes": (lambda m: m.graph.value_info.append(graphs.value("wide", [1])), "it declares the shapes"),
    "old opset": (lambda m: setattr(m.opset_import[0], "version", 11), "it is of opset 11"),
    "many nodes": (lambda m: m.graph.node.extend([node("Relu", "x", "_")] * 50_001), "it has 50003 nodes, more"),
}


@pytest.mark.parametrize("case", list(REJECTED))
def test_models_that_exports_do_not_write_are_rejected(case: str, tmp_path: Path) -> None:
    change, fault = REJECTED[case]
    with pytest.raises(GraphError, match=f"product.onnx is rejected: {fault}"):
        Session(runtime(), save(tmp_path, change), 1)


NOT_EXPORTED: dict[str, tuple[onnx.NodeProto, str]] = {
    "contrib": (helper.make_node("Attention", ["x"], ["z"], domain="com.microsoft"), "'z' (Attention): exports"),
    "loop": (node("Loop", "_ x y", body=in_graph()), "'z' (Loop): it has a subgraph"),
    "operator": (node("Einsum", "x x", equation="ij,ij->ij"), "'z' (Einsum): exports do not use this operator"),
    "unnamed input": (node("Add", "x _"), "'z' (Add): input 1 has no name"),
    "unnamed output": (node("Relu", "x", "_"), "'' (Relu): output 0 has no name"),
    "too few inputs": (node("Where", "x x"), "'z' (Where): it has 2 inputs"),
    "too many outputs": (node("Relu", "x", "z w"), "'z' (Relu): it has 2 outputs"),
    "attribute": (node("Relu", "x", alpha=1.0), "'z' (Relu): it has the attribute 'alpha'"),
    "huge kernel": (node("AveragePool", "x", kernel_shape=[2**62]), f"its attribute 'kernel_shape' is {2**62}"),
    "negative stride": (node("Conv", "x x", strides=[1, -1]), "its attribute 'strides' is -1"),
    "unnamed kernel": (node("Conv", "x x", dilations=[1, 2]), "'z' (Conv): it has no attribute 'kernel_shape'"),
    "text": (node("Gelu", "x", approximate="fast"), "its attribute 'approximate' is 'fast'"),
    "type of an attribute": (node("Softmax", "x", axis=1.0), "its attribute 'axis' has another type"),
    "factor": (node("Gemm", "x x", alpha=float("nan")), "its attribute 'alpha' is not finite"),
    "integers by a variable": (node("Div", "n n"), "'z' (Div): it may divide integers by 0 or -1"),
    "integers by zero": (node("Div", "n zero"), "it may divide integers by 0 or -1"),
    "mean of integers": (node("ReduceMean", "n"), "it may divide integers by 0 or -1"),
}


@pytest.mark.parametrize("case", list(NOT_EXPORTED))
def test_nodes_that_exports_do_not_write_are_rejected(case: str, tmp_path: Path) -> None:
    made, fault = NOT_EXPORTED[case]

    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array([1, 0]), "zero"))
        model.graph.node.extend([node("Shape", "x", "n"), made])

    path = save(tmp_path, change)
    with pytest.raises(GraphError) as error:
        Session(runtime(), path, 1)
    assert re.fullmatch(rf".*product.onnx is rejected: node .*{re.escape(fault)}.*--trusted-graphs", str(error.value))
    check_graph(path, trusted=True)


@pytest.mark.parametrize("cache", ["past_key_0", "present_value_0"])
@pytest.mark.parametrize("reader", ["Identity", "Shape"])
def test_a_cache_that_other_nodes_read_is_rejected(reader: str, cache: str, tmp_path: Path) -> None:
    """Its tensors may show more rows than there are: other nodes may only ask for the past's shape."""
    graph = build_graphs(onnx, random_weights(np.random.default_rng(new_seed())))["llm"]
    graph.graph.node.append(helper.make_node(reader, [cache], ["read"]))
    graph.graph.output.append(graphs.value("read", None, TensorProto.INT64 if reader == "Shape" else TensorProto.FLOAT))
    path = tmp_path / "llm.onnx"
    onnx.save(graph, path)
    if reader == "Shape" and cache == "past_key_0":
        assert Session(runtime(), str(path), 1).custom_kernels[0].startswith("attention")
    else:
        assert_attention_is_rejected(path)


@pytest.mark.parametrize("source", ["past_key_1", "row"])
def test_a_cache_without_attention_is_rejected(source: str, tmp_path: Path) -> None:
    """Other nodes would write the cache with its tensor's number of rows."""
    graph = build_graphs(onnx, random_weights(np.random.default_rng(new_seed())))["llm"]
    if source == "row":
        graph.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1, 4, 8), np.float32), "row"))
    else:
        graph.graph.input.append(graphs.value(source, ["B", 1, "T", 8]))
    graph.graph.node.append(helper.make_node("Neg", [source], ["present_key_1"]))
    graph.graph.output.append(graphs.value("present_key_1", None))
    onnx.save(graph, tmp_path / "llm.onnx")
    assert_attention_is_rejected(tmp_path / "llm.onnx")


def assert_attention_is_rejected(path: Path) -> None:
    with pytest.raises(GraphError, match=r"\(GroupQueryAttention\): the core cannot replace it"):
        check_graph(str(path))


def field(number: int, wire: int, rest: bytes) -> bytes:
    return bytes([number << 3 | wire]) + rest


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def message(number: int, content: bytes) -> bytes:
    return field(number, 2, varint(len(content)) + content)


DAMAGED_TENSORS = {
    "dims as a float": field(1, 5, b"\0\0\0\0"),
    "dims as a double": field(1, 1, bytes(8)),
    "truncated dims": field(1, 2, b"\x02\x80\x80"),
    "a negative dim": field(1, 0, b"\xff" * 9 + b"\x01"),
    "dims whose product overflows": field(1, 0, b"\xff" * 4 + b"\x7f") * 4,
    "a type as text": field(2, 2, b"\x01a"),
    "a type of 64 bits": field(2, 0, b"\xff\xff\xff\xff\x7f"),
    "a name as a number": field(8, 0, b"\x01"),
    "two names": field(8, 2, b"\x01a") * 2,
    "a name in invalid UTF-8": field(8, 2, b"\x01\xff"),
    "a group": field(17, 3, field(17, 4, b"")),
    "field 0": field(0, 0, b"\0"),
    "a tag of more than 32 bits": b"\x88\x80\x80\x80\x80\x01\x00",
    "an unknown location": field(14, 0, b"\x02"),
    "truncated data": field(9, 2, b"\x7f"),
}


@pytest.mark.parametrize("fault", list(DAMAGED_TENSORS))
def test_damaged_tensors_are_rejected(fault: str, tmp_path: Path) -> None:
    """protobuf would skip such a field, or read another value than the core."""
    path = tmp_path / "damaged.onnx"
    path.write_bytes(message(7, message(5, DAMAGED_TENSORS[fault])))
    with pytest.raises(GraphError, match="damaged.onnx is rejected: ") as error:
        Session(runtime(), str(path), 1)
    assert len(str(error.value).splitlines()) == 1


def test_deep_graphs_and_special_files_are_rejected(tmp_path: Path) -> None:
    graph = b""
    for _ in range(200):  # a graph in an attribute of a node of a graph ...
        graph = message(1, message(5, message(6, graph)))
    path = tmp_path / "deep.onnx"
    path.write_bytes(message(7, graph))
    with pytest.raises(GraphError, match="deeper than 100"):
        check_graph(str(path))
    os.mkfifo(tmp_path / "pipe.onnx")
    for name, error in (("pipe.onnx", "it is not a regular file"), ("missing.onnx", "No such file")):
        with pytest.raises(GraphError, match=error):
            check_graph(str(tmp_path / name))
