"""int4 and int8 for TensorRT on small modules: merged products, padded blocks, tables, convolutions."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from blip2rt.backends.trt import builder
from blip2rt.modeling.quantize import dequantize_blockwise, quantize_blockwise
from blip2rt_export import targets
from blip2rt_export.checks.calibration import batch_ranges
from blip2rt_export.checks.sessions import unfused_session
from blip2rt_export.checks.verify import mean_cosine
from blip2rt_export.graph_exporter import GraphExporter
from blip2rt_export.graphs import trace
from blip2rt_export.precision import quantizer
from blip2rt_export.precision.quantizer import BlockFormat, Quantizer
from blip2rt_export.progress import Progress
from blip2rt_export.trt import merge_matmuls
from blip2rt_export.trt import precision as trt_precision
from tests.seeds import seed_of
from tests.tiny.bundle import parse_graph

SEED = seed_of(__name__)


def check_build(graph: Path, **sizes: tuple[int, int, int]) -> None:
    """Build a plan, which needs no GPU, if tensorrt-rtx is installed."""
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        trt, settings = builder.load_tensorrt("tensorrt_rtx"), builder.Settings(("SM86", "SM89", "SM120"))
        assert builder.build(trt, graph, [{"B": (1, 2, 3), **sizes}], settings)


def test_products_with_a_shared_bias_are_merged(tmp_path: Path) -> None:
    """A bias shared within and across layers (as zeros are), and a product without a bias next to one with it."""
    rng = np.random.default_rng(SEED)
    tensors = {f"w{i}": rng.normal(size=(8, size)).astype(np.float32) for i, size in enumerate((8, 8, 8, 8, 8, 5))}
    tensors["b"] = rng.normal(size=8).astype(np.float32)
    source, x = "", "x"
    for layer in range(2):
        for weight in (2 * layer, 2 * layer + 1):
            source += f"[p{weight}] p_{weight} = MatMul({x}, w{weight})\n[y{weight}] y_{weight} = Add(p_{weight}, b)\n"
        source += f"[x{layer}] x{layer} = Mul(y_{2 * layer}, y_{2 * layer + 1})\n"
        x = f"x{layer}"
    source += f"[p4] p4 = MatMul({x}, w4)\ny = Add(p4, b)\n[p5] z = MatMul({x}, w5)"
    ends = "(float[3,8] x) => (float[3,8] y, float[3,5] z)"
    proto = onnx.shape_inference.infer_shapes(parse_graph(onnx, f"{ends} {{{source}}}", tensors, 19, 9))
    model = trace.ir.from_proto(proto)
    products = [node for node in model.graph if node.op_type == "MatMul"]
    assert len(merge_matmuls.merge(model, products)) == 4  # p5 is an output and is not merged
    onnx.save(proto, tmp_path / "before.onnx")
    onnx.save(trace.ir.to_proto(model), tmp_path / "after.onnx")
    feeds = {"x": rng.normal(size=(3, 8)).astype(np.float32)}
    both = [unfused_session(tmp_path / f"{name}.onnx", 1).run(None, feeds) for name in ("before", "after")]
    for got, want in zip(*both, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [96, 70])
def test_block_codes_reproduce_weights(rows: int) -> None:
    """They reproduce the rounded weights of the target ort."""
    rng = np.random.default_rng(SEED)
    weight = rng.standard_t(4, (rows, 33)).astype(np.float32) + rng.normal(size=33).astype(np.float32)
    integers, scales, offsets = Quantizer(BlockFormat(32)).block_codes("w", trace.ir.tensor(weight))
    assert integers.min() >= -8 and integers.max() <= 7 and scales.shape == offsets.shape == (3, 33)
    want = dequantize_blockwise(quantize_blockwise(torch.from_numpy(weight).T, 4, 32)).T.numpy()
    held = integers * scales.repeat(32, 0) + offsets.repeat(32, 0)
    np.testing.assert_allclose(held[:rows], want, atol=1e-5)
    np.testing.assert_allclose(held[rows:], 0, atol=1e-5)


class _FeedForward(torch.nn.Module):
    """Layers that do not consist of whole blocks of 64, and a table too small for float16 storage."""

    def __init__(self, width: int = 1000) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(50, 360)
        self.first, self.second = torch.nn.Linear(360, width), torch.nn.Linear(width, 360)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.first(x).relu())


class _Table(_FeedForward):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table(x)


@pytest.mark.parametrize("width", [1000, 1001])
def test_int4_pads_incomplete_blocks_and_odd_columns(width: int, tmp_path: Path) -> None:
    """Hidden size 360 and this feed-forward size: numbers equal those of the target ort, and TensorRT builds them."""
    torch.manual_seed(SEED)
    module, table, x = _FeedForward(width).eval(), _Table().eval(), torch.randn(2, 5, 360)
    exporter = GraphExporter(tmp_path, targets.TRT, Progress(), verified=False)
    with exporter.group("llm", "int4") as group:
        for name, part in (("llm", module), ("embed", table)):
            given = {"x": x if name == "llm" else torch.tensor([[3, 4]])}
            axes = {"x": {0: "B", 1: "S"}}
            exporter.write(name, exporter.trace(trace.GraphSpec(name, part, given, ["y"], axes)), group)
    precisions = {name: component.precision for name, component in exporter.components.items()}
    assert precisions == {"llm": "int4", "embed": "int4"} and not exporter.notes
    ids = np.arange(50).reshape(5, 10)
    lookup = unfused_session(tmp_path / "embed.onnx", 1).run(None, {"x": ids})[0]
    held = dequantize_blockwise(quantize_blockwise(table.table.weight, 4, 64)).detach().numpy()
    np.testing.assert_allclose(lookup, held[ids], rtol=1e-6, atol=1e-7)
    kept = onnx.load(tmp_path / "llm.onnx").graph.initializer
    codes = [each for each in kept if each.data_type == onnx.TensorProto.INT4 and "codes" in each.name]
    assert sorted(tuple(each.dims) for each in codes) == [(384, width + width % 2), (1024, 360)]
    got = unfused_session(tmp_path / "llm.onnx", 1).run(None, {"x": x.numpy()})[0]
    for layer in (module.first, module.second):
        layer.weight.data = dequantize_blockwise(quantize_blockwise(layer.weight, 4, 64))
    want = module(x).detach().numpy()
    np.testing.assert_allclose(got, want, atol=0.02)  # in float16 against float32
    for name in ("llm", "embed"):
        check_build(tmp_path / f"{name}.onnx", S=(1, 5, 8))


def test_table_of_odd_width_is_reported_as_fp32(tmp_path: Path) -> None:
    """In a note, in the comparison and in the manifest's component."""
    torch.manual_seed(SEED)
    module, ids = _Table().eval(), torch.tensor([[3, 4]])
    module.table = torch.nn.Embedding(50, 361)
    part = trace.GraphSpec("embed", module, {"x": ids}, ["y"], {"x": {0: "B", 1: "S"}})
    exporter = GraphExporter(tmp_path, targets.TRT, Progress())
    with exporter.group("llm", "int4") as group:
        exporter.write("embed", exporter.trace(part), group)
    exporter.compare("embed", {"x": ids.numpy()}, exporter.reference(part, {"x": ids.numpy()}))
    assert exporter.notes == ["embed is fp32: nothing in it can be int4"]
    assert {exporter.components["embed"].precision, *(row.precision for row in exporter.comparisons)} == {"fp32"}


def test_channel_codes_reproduce_weights() -> None:
    rng = np.random.default_rng(SEED)
    weight = rng.normal(size=(33, 17)).astype(np.float32)
    weight[:, 3] = 0
    integers, scales = quantizer.channel_codes(weight, 1, np.dtype(np.float16))
    assert integers.dtype == np.int8 and scales.shape == (17,) and np.abs(integers).max() == 127
    error = np.abs(integers * scales.astype(np.float32) - weight)
    assert (error <= 0.51 * scales.astype(np.float32) + 1e-3 * np.abs(weight)).all()


class _Encoder(torch.nn.Module):
    """Convolutions as in a mobile encoder: a stem, a depthwise one, and a 1x1 one with a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 16, 3, stride=2)
        self.depthwise = torch.nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pointwise = torch.nn.Conv2d(16, 16, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.relu6(self.stem(pixels))
        x = x + self.pointwise(torch.nn.functional.relu6(self.depthwise(x)))
        return x.flatten(2).transpose(1, 2)


def test_int8_convolutions_are_accurate_and_build(tmp_path: Path) -> None:
    """Scales are for the first axis of the weights; the stem and the depthwise convolution stay float16."""
    torch.manual_seed(SEED)
    pixels = torch.randn(2, 3, 17, 21)
    part = trace.GraphSpec("vision", _Encoder().eval(), {"pixels": pixels}, ["vision_features"], {"pixels": {0: "B"}})
    model = trace.trace(part, targets.TRT.opset)
    ranges = batch_ranges(model, tmp_path, "vision", [{"pixels": pixels.numpy()}], trt_precision.operands)
    assert len(ranges) == 1
    trt_precision.apply(model, "int8-static", Quantizer(BlockFormat(32)), ranges)
    trace.save(model, tmp_path / "vision.onnx", None)
    got = unfused_session(tmp_path / "vision.onnx", 1).run(None, {"pixels": pixels.numpy()})[0]
    assert mean_cosine(got, part.run({"pixels": pixels.numpy()})["vision_features"]) > 0.999
    nodes = onnx.load(tmp_path / "vision.onnx").graph.node
    axes = [node.attribute[0].i for node in nodes if node.op_type == "DequantizeLinear" and node.attribute]
    assert axes == [0]
    check_build(tmp_path / "vision.onnx")
