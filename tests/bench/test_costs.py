"""The cost of graphs, and the measured limits of the machine."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from blip2rt.bench import collect, costs, machine
from blip2rt.bench.stages import Workload
from blip2rt.bundle import embedded, read
from blip2rt.bundle.onnx_protobuf import float_matmul, int8_matmul
from blip2rt.bundle.onnx_protobuf import read as read_graph
from blip2rt.native import native
from tests.engines.native import Session, runtime
from tests.seeds import seed_of

SEED = seed_of(__name__)


@pytest.mark.parametrize("kind, own", [("fp32", True), ("int8", True), ("int8", False)])
def test_measured_product_is_valid_onnx(kind, own, tmp_path):
    """Its graph is valid and computes the product, in int8 with our kernel if the processor has one."""
    onnx = pytest.importorskip("onnx")

    rng = np.random.default_rng(SEED)
    weight, x = rng.integers(-9, 9, (7, 5)).astype(np.int8), rng.integers(0, 256, (3, 5)).astype(np.float32)
    x[:, :2] = 0, 255  # so that the other numbers are whole when quantized
    scales = np.full(7, 0.5, np.float32)
    as_float = 0.5 * weight.T.astype(np.float32)
    int8 = int8_matmul((7, 5), weight.tobytes(), scales.tobytes())
    data = int8 if kind == "int8" else float_matmul((5, 7), as_float.tobytes())
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    (tmp_path / "product.onnx").write_bytes(data)
    session = Session(runtime(), str(tmp_path / "product.onnx"), 1, custom_int8=own, trusted=True)
    assert np.allclose(session.run({"a": x})["y"], x @ as_float, rtol=1e-6)
    kernels = [name for name in native().processor_kernels() if name.startswith("int8")] if kind == "int8" else []
    assert session.custom_kernels == (kernels if own else [])
    assert machine.product_rate(kind, 1, own) > 0


@pytest.mark.parametrize("name", ["vision", "qformer", "llm", "itm"])
def test_graphs_are_read_as_onnx_reads_them(name):
    onnx = pytest.importorskip("onnx")
    path = embedded() / f"{name}.onnx"
    theirs = onnx.load(path, load_external_data=False).graph
    ours = read_graph(path)
    assert Counter(node.op_type for node in ours.nodes) == Counter(node.op_type for node in theirs.node)
    assert [node.inputs for node in ours.nodes] == [tuple(node.input) for node in theirs.node]
    assert {n: (t.dims, t.dtype) for n, t in ours.initializers.items()} == {
        t.name: (tuple(t.dims), t.data_type) for t in theirs.initializer
    }


def test_products_and_bytes_are_counted(tmp_path):
    """A convolution, a float and an integer product of known sizes; tables are not read completely."""
    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    rng = np.random.default_rng(SEED)
    channels, width, height, out = (int(n) for n in rng.integers(2, 9, 4))
    height, width, stride = 4 * height, 4 * width, int(rng.integers(1, 3))
    positions = (-(-height // stride)) * (-(-width // stride))

    def constant(name, shape, dtype=np.float32):
        return onnx.numpy_helper.from_array(np.zeros(shape, dtype), name)

    nodes = [
        helper.make_node("Conv", ["x", "conv"], ["c"], pads=[1, 1, 1, 1], strides=[stride, stride]),
        helper.make_node("Reshape", ["c", "flat"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["m"]),
        helper.make_node("Transpose", ["q"], ["t"], perm=[1, 0]),
        helper.make_node("DynamicQuantizeMatMul", ["m", "t", "s"], ["d"], domain="com.microsoft"),
        helper.make_node("Gather", ["table", "ids"], ["g"]),
        helper.make_node("Cast", ["half"], ["f"], to=kinds.FLOAT),
        helper.make_node("Mul", ["d", "f"], ["y"]),
    ]
    initializers = [
        *(constant("conv", (out, channels, 3, 3)), constant("flat", (3,), np.int64), constant("w", (out, 11))),
        *(constant("q", (13, 11), np.int8), constant("s", (13,)), constant("table", (1000, 4))),
        *(constant("half", (13,), np.float16), constant("ids", (3,), np.int64)),
    ]
    graph = helper.make_graph(nodes, "g", [], [], initializers)
    onnx.save(helper.make_model(graph), tmp_path / "graph.onnx")
    cost = costs.of_graph(tmp_path / "graph.onnx", {}, positions, 1, ("x", height, width))
    assert cost.float_macs == positions * (9 * channels * out + 11 * out)
    assert cost.int8_macs == positions * 11 * 13
    assert cost.weight_bytes == 4 * (9 * channels * out + 11 * out + 13 + 13) + 11 * 13 + 3 * 8


def test_decode_step_costs_the_parameters():
    """SmolLM2-135M: 134,515,008 parameters; all but the norms are multiplied once a token."""
    spec = read(embedded()).manifest.llm
    found = collect.stage_costs(read(embedded()), Workload(str(embedded()), ""), 20)
    step, prefill = found["decode step"], found["prefill"]
    norms = (2 * spec.layers + 1) * spec.hidden_size
    assert step.int8_macs == 134_515_008 - norms
    head = spec.vocab_size * spec.hidden_size
    assert prefill.int8_macs == 20 * (step.int8_macs - head) + head, "logits of the last position only"
    files = read(embedded()).manifest.files
    assert files["llm.data"].size <= step.weight_bytes < 1.1 * files["llm.data"].size, (
        "scales take twice their size in memory"
    )


def test_qformer_costs_queries_and_image_positions():
    """MiniLM's six layers for 16 queries; keys and values of 145 positions in three of them."""
    found = collect.stage_costs(read(embedded()), Workload(str(embedded()), ""), 20)["qformer"]
    width, queries, positions, features = 384, 16, 145, 768
    own = 6 * (4 * width * width + 2 * width * 4 * width) + 3 * 2 * width * width + width * 576
    assert found.int8_macs == queries * own + positions * 3 * 2 * features * width


def test_limit_is_the_longer_of_reading_and_multiplying():
    rates = costs.Rates(read_bytes=100.0, int8_ops=10.0, fp32_ops=1.0)
    assert costs.limit(costs.Cost(500, 5, 1), rates) == (5.0, "memory")
    assert costs.limit(costs.Cost(500, 50, 1), rates) == (12.0, "compute")
