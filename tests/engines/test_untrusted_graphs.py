"""A graph is a stranger's file: nothing that it says reads foreign memory, other files, or ends the process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.engines.native import GraphError, Session, check_graph, runtime
from tests.seeds import new_seed

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper

from tests.engines.native import mutants
from tests.tiny.bundle import build_graphs, random_weights

ROOT = Path(__file__).parents[2]
CRASHES = (-6, -11, -7, -8, -4)  # what a signal ended


@pytest.mark.parametrize("fresh", [False, True], ids=["fixed-seed", "fresh-seed"])
def test_altered_graphs_are_errors_or_right(fresh: bool, tmp_path: Path) -> None:
    """They run, or are errors, and say what ONNX Runtime's own operators say."""
    seed = new_seed() if fresh else 21
    print(f"seed {seed}")
    runs_or_ends_onnx_runtime("mutants", seed, 350, tmp_path)


@pytest.mark.slow
def test_nanos_altered_graphs_caption_or_are_errors(tmp_path: Path) -> None:
    runs_or_ends_onnx_runtime("nano_mutants", new_seed(), 300, tmp_path)


def runs_or_ends_onnx_runtime(module: str, seed: int, count: int, folder: Path) -> None:
    """Run `count` mutants in one process. Where one ends it, ONNX Runtime's own operators end it, too."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", f"tests.engines.native.{module}", str(seed), str(count), str(folder)]
        return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT)

    first = 0
    while True:
        done = run(first)
        if done.returncode == 0:
            break
        last = [line.split() for line in done.stdout.splitlines()][-1]
        again = [last[1]] if module == "mutants" else [last[0], "theirs"]
        assert done.returncode in CRASHES and run(*again).returncode in CRASHES, (
            f"seed {seed}, mutant {last}: {done.returncode} {done.stderr[-2000:]}"
        )
        first = int(last[0]) + 1


def save(folder: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """The int4 product with its codes in product.data, changed."""
    model = mutants.int4(np.random.default_rng(new_seed()))
    codes = model.graph.initializer[0]
    (folder / "product.data").write_bytes(bytes(64) + codes.raw_data)
    length = len(codes.raw_data)
    codes.ClearField("raw_data")
    codes.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "product.data"), ("offset", "64"), ("length", str(length))):
        codes.external_data.add(key=key, value=value)
    change(model)
    path = folder / "product.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def entry(name: str, value: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for one in model.graph.initializer[0].external_data:
            if one.key == name:
                one.value = value

    return change


def test_a_sound_graph_passes(tmp_path: Path) -> None:
    path = save(tmp_path, lambda model: None)
    size = (tmp_path / "product.data").stat().st_size
    check_graph(str(path))
    check_graph(str(path), {"product.data": size, "product.onnx": 1})
    Session(runtime(), str(path), 1, files={"product.data": size})
    with pytest.raises(GraphError, match=r"product.onnx is rejected: tensor 'codes': .*the manifest does not list"):
        check_graph(str(path), {"other.data": size})
    with pytest.raises(GraphError, match=rf"which has {size} bytes instead of {size + 1}"):
        Session(runtime(), str(path), 1, files={"product.data": size + 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("location", "../product.data"), ("location", "/etc/passwd"), ("location", "sub/product.data"),
        ("location", ""),
        ("location", "."), ("location", ".."), ("location", "a\\product.data"), ("location", "*/_ORT_MEM_ADDR_/*"),
        ("location", "link.data"), ("location", "hard/../product.data"), ("location", "missing.data"),
        ("location", "pipe"),
        ("location", "folder"), ("location", "product.data\0"), ("location", "_ORT_MEM_ADDR_:*"), ("offset", "-1"),
        ("offset", "65"), ("offset", "0x10"), ("offset", ""), ("offset", "18446744073709551615"), ("offset", " 64"),
        ("length", "1"), ("length", "99999"), ("length", "-1"), ("length", "1e3"),
    ],
)  # fmt: skip
def test_external_data_stays_in_the_bundle(name: str, value: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.data").symlink_to("product.data")
    os.mkfifo(tmp_path / "pipe")
    path = save(tmp_path, entry(name, value))
    files = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    for allowed in (None, files):
        with pytest.raises(GraphError, match="product.onnx is rejected: tensor 'codes': external data") as error:
            Session(runtime(), str(path), 1, files=allowed)
        assert len(str(error.value).splitlines()) == 1


def outside(name: str = "stranger") -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    return tensor


def in_graph() -> onnx.GraphProto:
    return helper.make_graph([], "inner", [], [], [outside()])


def in_sparse() -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=outside(), indices=outside(), dims=[1])


def attribute(**parts: object) -> onnx.AttributeProto:
    return onnx.AttributeProto(name="a", **parts)


HIDDEN: dict[str, Callable[[onnx.ModelProto], object]] = {
    "initializer": lambda m: m.graph.initializer.append(outside()),
    "sparse initializer": lambda m: m.graph.sparse_initializer.append(in_sparse()),
    "t": lambda m: m.graph.node[0].attribute.append(attribute(t=outside())),
    "tensors": lambda m: m.graph.node[0].attribute.append(attribute(tensors=[outside()])),
    "sparse_tensor": lambda m: m.graph.node[0].attribute.append(attribute(sparse_tensor=in_sparse())),
    "sparse_tensors": lambda m: m.graph.node[0].attribute.append(attribute(sparse_tensors=[in_sparse()])),
    "g": lambda m: m.graph.node[0].attribute.append(attribute(g=in_graph())),
    "graphs": lambda m: m.graph.node[0].attribute.append(attribute(graphs=[in_graph()])),
    "function": lambda m: m.functions.append(
        helper.make_function("d", "f", [], [], [helper.make_node("Constant", [], ["c"], value=outside())], [])
    ),
    "training": lambda m: m.training_info.append(onnx.TrainingInfoProto(algorithm=in_graph())),
    "without location": lambda m: m.graph.initializer[0].ClearField("data_location") or entry("location", "../s")(m),
    "without entries": lambda m: m.graph.initializer[0].ClearField("external_data"),
    "with numbers": lambda m: setattr(m.graph.initializer[0], "raw_data", b"1"),
    "twice": lambda m: m.graph.initializer[0].external_data.add(key="location", value="product.data"),
    "prepacked": lambda m: m.graph.initializer[0].external_data.add(key="prepacked_0", value="x"),
}


@pytest.mark.parametrize("place", list(HIDDEN))
def test_no_tensor_is_overlooked(place: str, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="product.onnx is rejected: tensor '(stranger|codes)': "):
        check_graph(str(save(tmp_path, lambda model: HIDDEN[place](model) and None)))


@pytest.mark.parametrize("place", ["node", "opset", "function", "inner"])
def test_the_cores_own_operators_are_refused(place: str, tmp_path: Path) -> None:
    ours = helper.make_node("MatMulInt4", ["x"], ["z"], domain="blip2rt")

    def change(model: onnx.ModelProto) -> None:
        if place == "node":
            model.graph.node.append(ours)
        elif place == "opset":
            model.opset_import.append(helper.make_opsetid("blip2rt", 1))
        elif place == "function":
            model.functions.append(helper.make_function("blip2rt", "f", [], [], [], []))
        else:
            model.graph.node[0].attribute.append(attribute(g=helper.make_graph([ours], "inner", [], [])))

    with pytest.raises(GraphError, match="it uses operators of the domain 'blip2rt'"):
        Session(runtime(), str(save(tmp_path, change)), 1)


@pytest.mark.parametrize(
    ("domain", "kind"), [("com.microsoft", "Attention"), ("ai.onnx.ml", "LabelEncoder"), ("a.stranger", "MatMulNBits")]
)
@pytest.mark.parametrize("place", ["node", "inner", "function"])
def test_operators_that_no_export_has_are_refused(place: str, domain: str, kind: str, tmp_path: Path) -> None:
    node = helper.make_node(kind, ["x"], ["z"], domain=domain)

    def change(model: onnx.ModelProto) -> None:
        if place == "node":
            model.graph.node.append(node)
        elif place == "inner":
            model.graph.node[0].attribute.append(attribute(g=helper.make_graph([node], "inner", [], [])))
        else:
            model.functions.append(helper.make_function("d", "f", ["x"], ["z"], [node], []))

    with pytest.raises(GraphError, match=f"it uses the operator '{kind}' of the domain '{domain}', which no export"):
        check_graph(str(save(tmp_path, change)))


@pytest.mark.parametrize("name", ["cache_rows", "encoder_rows"])
def test_the_loops_own_inputs_are_refused(name: str, tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT32, ["B"]))

    with pytest.raises(GraphError, match="an input that the loop gives"):
        Session(runtime(), str(save(tmp_path, change)), 1)


def custom_kernels(graph: onnx.ModelProto, path: Path) -> list[str]:
    onnx.save(graph, path)
    return [kernel.split()[0] for kernel in Session(runtime(), str(path), 1).custom_kernels]


@pytest.mark.parametrize("cache", ["past_key_0", "present_value_0"])
@pytest.mark.parametrize("reader", ["Identity", "Shape"])
def test_who_else_reads_the_cache_keeps_onnx_runtimes_attention(reader: str, cache: str, tmp_path: Path) -> None:
    """The cache's tensors may show more rows than there are: only the past's shape is anybody's to ask for."""
    graph = build_graphs(onnx, random_weights(np.random.default_rng(new_seed())))["llm"]
    graph.graph.node.append(helper.make_node(reader, [cache], ["read"]))
    graph.graph.output.append(helper.make_tensor_value_info("read", TensorProto.FLOAT, None))
    if reader == "Shape":
        graph.graph.output[-1].type.tensor_type.elem_type = TensorProto.INT64
    ours = reader == "Shape" and cache == "past_key_0"
    assert custom_kernels(graph, tmp_path / "llm.onnx") == (["attention"] if ours else [])


@pytest.mark.parametrize("made_from", ["past_key_1", "row"])
def test_a_cache_that_no_attention_has_keeps_onnx_runtimes_attention(made_from: str, tmp_path: Path) -> None:
    """Others would write it in as many rows as its tensor shows."""
    graph = build_graphs(onnx, random_weights(np.random.default_rng(new_seed())))["llm"]
    if made_from == "row":
        graph.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1, 4, 8), np.float32), "row"))
    else:
        graph.graph.input.append(helper.make_tensor_value_info(made_from, TensorProto.FLOAT, ["B", 1, "T", 8]))
    graph.graph.node.append(helper.make_node("Neg", [made_from], ["present_key_1"]))
    graph.graph.output.append(helper.make_tensor_value_info("present_key_1", TensorProto.FLOAT, None))
    assert custom_kernels(graph, tmp_path / "llm.onnx") == []


def field(number: int, wire: int, rest: bytes) -> bytes:
    return bytes([number << 3 | wire]) + rest


TENSOR = {
    "dims as a float": field(1, 5, b"\0\0\0\0"),
    "dims as a double": field(1, 1, bytes(8)),
    "dims cut off": field(1, 2, b"\x02\x80\x80"),
    "a negative dim": field(1, 0, b"\xff" * 9 + b"\x01"),
    "a product of dims that overflows": field(1, 0, b"\xff" * 4 + b"\x7f") * 4,
    "a type as text": field(2, 2, b"\x01a"),
    "a type of 64 bits": field(2, 0, b"\xff\xff\xff\xff\x7f"),
    "a name as a number": field(8, 0, b"\x01"),
    "two names": field(8, 2, b"\x01a") * 2,
    "a name that is not UTF-8": field(8, 2, b"\x01\xff"),
    "a group": field(17, 3, field(17, 4, b"")),
    "field 0": field(0, 0, b"\0"),
    "a tag of more than 32 bits": b"\x88\x80\x80\x80\x80\x01\x00",
    "a location that is none": field(14, 0, b"\x02"),
    "an end too early": field(9, 2, b"\x7f"),
}


@pytest.mark.parametrize("fault", list(TENSOR))
def test_a_damaged_tensor_is_refused(fault: str, tmp_path: Path) -> None:
    """protobuf would skip such a field, or read another number than the core."""
    tensor = TENSOR[fault]
    graph = field(5, 2, bytes([len(tensor)]) + tensor)
    path = tmp_path / "damaged.onnx"
    path.write_bytes(field(7, 2, bytes([len(graph)]) + graph))
    with pytest.raises(GraphError, match="damaged.onnx is rejected: ") as error:
        Session(runtime(), str(path), 1)
    assert len(str(error.value).splitlines()) == 1


def test_packed_and_unpacked_dims_are_the_same(tmp_path: Path) -> None:
    model = mutants.int4(np.random.default_rng(new_seed()))
    tensor = model.graph.initializer[0]
    dims = list(tensor.dims)
    plain = model.SerializeToString()
    old = b"".join(field(1, 0, bytes([d])) for d in dims)
    assert plain.count(old) == 1
    packed = plain.replace(old, field(1, 2, bytes([len(dims), *dims])))
    assert len(packed) < len(plain)
    tensor.CopyFrom(onnx.TensorProto.FromString(field(1, 2, bytes([len(dims), *dims]))))
    assert list(tensor.dims) == dims
    # The lengths of the messages around it differ by the bytes that packing saves.
    whole = onnx.ModelProto.FromString(plain)
    inner = whole.graph.initializer[0].SerializeToString().replace(old, field(1, 2, bytes([len(dims), *dims])))
    del whole.graph.initializer[0]
    graph = whole.graph.SerializeToString() + field(5, 2, varint(len(inner)) + inner)
    whole.ClearField("graph")
    path = tmp_path / "packed.onnx"
    path.write_bytes(whole.SerializeToString() + field(7, 2, varint(len(graph)) + graph))
    mine = Session(runtime(), str(path), 1)
    (tmp_path / "plain.onnx").write_bytes(plain)
    x = np.random.default_rng(new_seed()).standard_normal((3, mutants.K)).astype(np.float32)
    theirs = Session(runtime(), str(tmp_path / "plain.onnx"), 1)
    assert mine.custom_kernels == theirs.custom_kernels
    np.testing.assert_array_equal(mine.run({"x": x})["y"], theirs.run({"x": x})["y"])


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def test_deep_and_strange_files_are_refused(tmp_path: Path) -> None:
    graph = b""
    for _ in range(200):  # a graph in an attribute of a node of a graph ...
        inner = field(6, 2, varint(len(graph)) + graph)
        node = field(5, 2, varint(len(inner)) + inner)
        graph = field(1, 2, varint(len(node)) + node)
    path = tmp_path / "deep.onnx"
    path.write_bytes(field(7, 2, varint(len(graph)) + graph))
    with pytest.raises(GraphError, match="deeper than 100"):
        check_graph(str(path))
    os.mkfifo(tmp_path / "pipe.onnx")
    for name, message in (("pipe.onnx", "it is not a regular file"), ("missing.onnx", "No such file")):
        with pytest.raises(GraphError, match=message):
            check_graph(str(tmp_path / name))


def test_onnx_runtimes_messages_are_one_line_of_text(tmp_path: Path) -> None:
    model = mutants.int4(np.random.default_rng(new_seed()))
    model.graph.node[1].op_type = "é\n\x1b[31m"
    path = tmp_path / "odd.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(RuntimeError) as error:
        Session(runtime(), str(path), 1)
    assert "é [31m" in str(error.value) and str(error.value).isprintable()


@pytest.mark.parametrize("change", ["n", "k", "block", "codes", "zeros", "scales", "input", "no outputs"])
def test_a_product_that_does_not_fit_is_left_alone(change: str, tmp_path: Path) -> None:
    def alter(model: onnx.ModelProto) -> None:
        node, constants = model.graph.node[1], {tensor.name: tensor for tensor in model.graph.initializer}
        attributes = {one.name: one for one in node.attribute}
        if change in ("n", "k"):
            attributes[change.upper()].i = 2**31 - 1
        elif change == "block":
            attributes["block_size"].i = 128
        elif change == "input":
            zeros = constants["zeros"]
            model.graph.input.append(helper.make_tensor_value_info("zeros", TensorProto.UINT8, list(zeros.dims)))
        elif change == "no outputs":
            del node.output[:]
        else:
            array = numpy_helper.to_array(constants[change])
            constants[change].CopyFrom(numpy_helper.from_array(array[: len(array) // 2], change))

    model = mutants.int4(np.random.default_rng(new_seed()))
    alter(model)
    path = tmp_path / "other.onnx"
    path.write_bytes(model.SerializeToString())
    try:
        session = Session(runtime(), str(path), 1)
    except (RuntimeError, MemoryError):
        return
    assert session.custom_kernels == []


@pytest.mark.parametrize("change", ["two axes of batches", "no axis", "an empty list of axes", "computed axes"])
def test_a_gather_that_ends_onnx_runtime_is_refused(change: str, tmp_path: Path) -> None:
    model = mutants.decoder(np.random.default_rng(new_seed()), False)
    index, gather = (next(n for n in model.graph.node if n.op_type == kind) for kind in ("Unsqueeze", "GatherND"))
    if change == "two axes of batches":
        gather.attribute[0].i = 2
    elif change == "no axis":
        gather.input[1] = "last_index"
    elif change == "an empty list of axes":
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(0, np.int64), "none"))
        index.input[1] = "none"
    else:
        index.input[1] = "last_index"
    path = tmp_path / "odd.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(GraphError, match="odd.onnx is rejected: a GatherND has several axes of batches, or indices"):
        check_graph(str(path))


@pytest.mark.parametrize("number", [1, 2, 4, -1])
def test_a_split_into_another_number_of_parts_is_refused(number: int, tmp_path: Path) -> None:
    """ONNX Runtime before 1.30 ended the process."""
    model = mutants.int8(np.random.default_rng(new_seed()))
    split = next(node for node in model.graph.node if node.op_type == "Split")
    next(each for each in split.attribute if each.name == "num_outputs").i = number
    path = tmp_path / "odd.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(GraphError, match="odd.onnx is rejected: a Split has different numbers of parts and outputs"):
        check_graph(str(path))


@pytest.mark.parametrize("number", [0, -1, 2**31, 2**32])
@pytest.mark.parametrize("name", ["num_heads", "kv_num_heads"])
def test_attention_without_a_number_of_heads_is_refused(name: str, number: int, tmp_path: Path) -> None:
    """ONNX Runtime before 1.30 divided by zero."""
    model = mutants.decoder(np.random.default_rng(new_seed()), False)
    attention = next(node for node in model.graph.node if node.op_type == "GroupQueryAttention")
    next(each for each in attention.attribute if each.name == name).i = number
    path = tmp_path / "odd.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(GraphError, match="odd.onnx is rejected: a GroupQueryAttention has no number of heads from 1"):
        check_graph(str(path))


INT8_FAULTS = [
    "no codes",
    "turned twice",
    "scales",
    "zeros",
    "a bias that is too short",
    "one number of bias",
    "fed",
    "nested",
]


@pytest.mark.parametrize("change", INT8_FAULTS)
def test_a_product_of_int8_that_does_not_fit_is_refused(change: str, tmp_path: Path) -> None:
    """ONNX Runtime 1.23 to 1.25 reads behind the end of a short bias."""
    model = mutants.int8(np.random.default_rng(new_seed()))
    node, constants = model.graph.node[1], {tensor.name: tensor for tensor in model.graph.initializer}
    if change == "no codes":
        node.input[1] = "x"
    elif change == "turned twice":
        model.graph.node[0].attribute[0].ints[:] = [0, 1]
    elif change == "zeros":
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(7, np.int8), "zeros"))
        node.input[3] = "zeros"
    elif change == "fed":
        model.graph.input.append(helper.make_tensor_value_info("bias", TensorProto.FLOAT, ["N"]))
    elif change == "nested":
        model.graph.node[3].attribute.append(attribute(g=helper.make_graph([node], "inner", [], [])))
    else:
        name = "scales" if change == "scales" else "bias"
        array = numpy_helper.to_array(constants[name])
        count = 1 if change == "one number of bias" else len(array) // 2
        constants[name].CopyFrom(numpy_helper.from_array(array[:count], name))
    path = tmp_path / "odd.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(GraphError, match="odd.onnx is rejected: (the weights of )?a DynamicQuantizeMatMul"):
        Session(runtime(), str(path), 1)


@pytest.mark.parametrize("zeros", [None, 1, 96])
@pytest.mark.parametrize("turned", [True, False])
def test_a_product_of_int8_that_fits_passes(zeros: int | None, turned: bool, tmp_path: Path) -> None:
    model = mutants.int8(np.random.default_rng(new_seed()))
    node, constants = model.graph.node[1], {tensor.name: tensor for tensor in model.graph.initializer}
    if zeros:
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(zeros, np.int8), "zeros"))
        node.input[3] = "zeros"
    if not turned:
        columns = np.ascontiguousarray(numpy_helper.to_array(constants["codes"]).T)
        constants["codes"].CopyFrom(numpy_helper.from_array(columns, "codes"))
        node.input[1] = "codes"
        del model.graph.node[0]
    path = tmp_path / "sound.onnx"
    path.write_bytes(model.SerializeToString())
    x = np.ones((1, mutants.POSITIONS, mutants.K), np.float32)
    assert np.isfinite(Session(runtime(), str(path), 1).run({"x": x})["y"]).all()


@pytest.mark.parametrize("change", ["n", "block", "codes", "zeros", "scales", "cast", "fed", "nested"])
def test_a_product_that_does_not_fit_is_refused(change: str, tmp_path: Path) -> None:
    """ONNX Runtime up to 1.24 packs such weights, and reads foreign memory."""
    model = mutants.int4(np.random.default_rng(new_seed()))
    node, constants = model.graph.node[1], {tensor.name: tensor for tensor in model.graph.initializer}
    attributes = {one.name: one for one in node.attribute}
    if change in ("n", "block"):
        attributes["N" if change == "n" else "block_size"].i *= 2
    elif change == "cast":  # bytes become numbers, of which there are too few
        model.graph.node.insert(0, helper.make_node("Cast", ["zeros"], ["numbers"], to=TensorProto.FLOAT))
        model.graph.node[2].input[3] = "numbers"
    elif change == "fed":
        model.graph.input.append(helper.make_tensor_value_info("codes", TensorProto.UINT8, constants["codes"].dims))
        model.graph.initializer.remove(constants["codes"])
    elif change == "nested":
        inner = helper.make_graph([node], "inner", [], [])
        model.graph.node.append(helper.make_node("Odd", ["x"], ["z"], body=inner))
    else:
        array = numpy_helper.to_array(constants[change])
        constants[change].CopyFrom(numpy_helper.from_array(array[:-1], change))
    path = tmp_path / "odd.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(GraphError, match="odd.onnx is rejected: (the weights of )?a MatMulNBits"):
        check_graph(str(path))
