"""The language model's graphs of the target trt in ONNX Runtime, against the target ort: floats, int8, int4."""

import functools
import importlib.util
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from blip2rt.backends.trt import builder
from blip2rt.modeling.quantize import dequantize_blockwise, quantize_blockwise
from blip2rt_export import targets
from blip2rt_export.checks.calibration import batch_ranges, language_ranges
from blip2rt_export.checks.llm import LlmGraphs
from blip2rt_export.checks.sessions import unfused_session
from blip2rt_export.checks.verify import mean_cosine
from blip2rt_export.graph_exporter import GraphExporter
from blip2rt_export.graphs import trace
from blip2rt_export.precision.quantizer import BlockFormat, Quantizer
from blip2rt_export.progress import Progress
from tests.seeds import seed_of
from tests.tiny import language_models
from tests.tiny.language_models import write

pytestmark = pytest.mark.long(28, "graphs for TensorRT, traced and run")

SEED = seed_of(__name__)


def slow(*names: str) -> list:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@functools.cache
def build(name: str) -> Any:
    return language_models.build(name, SEED)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LlmGraphs]:
    """A function: write a model's float32 graphs for the target trt, once."""

    @functools.cache
    def make(name: str) -> LlmGraphs:
        return write(targets.TRT.llm_graphs(build(name), 64), tmp_path_factory.mktemp(name), targets.TRT)

    return make


def prompts(model) -> list[np.ndarray]:
    """Make [prefix | prompt] rows of different length."""
    rng = np.random.default_rng(SEED)
    width = model.get_input_embeddings().weight.shape[1]
    return [rng.normal(size=(length, width)).astype(np.float32) for length in (7, 3, 5)]


@pytest.mark.parametrize("name", ["opt", *slow("t5", "llama", "qwen2", "narrow", "gemma", "tied")])
def test_tokens_match_the_target_ort(name: str, exact: Callable[[str], LlmGraphs], tmp_path: Path) -> None:
    """Greedy tokens of rows of different length, and logits within float32 rounding."""
    rows = prompts(build(name))
    want_tokens, want = write(targets.ORT.llm_graphs(build(name), 64), tmp_path, targets.ORT).run(rows)
    _, got = exact(name).run(rows, want_tokens)
    assert np.abs(got - want).max() < 1e-4 * max(1, np.abs(want).max())
    best = np.sort(want, -1)
    clear = best[..., -1] - best[..., -2] > 1e-3  # rounding decides near ties
    assert clear.mean() > 0.5 and (got.argmax(-1) == want_tokens)[clear].all()


def test_narrow_sliding_windows_are_rejected(tmp_path: Path) -> None:
    from blip2rt.errors import Blip2rtError
    from blip2rt_export.trt import llm

    model = build("mistral")  # its window is 4 positions
    with pytest.raises(Blip2rtError, match="--max-positions 4"):
        llm.trace_llm(model, 64)
    assert llm.trace_llm(model, 4)


@pytest.mark.parametrize("name", ["opt", *slow("t5", "llama")])
def test_fp16_graph_is_typed_and_close_to_float32(name: str, exact: Callable[[str], LlmGraphs], tmp_path: Path) -> None:
    """Products and cache are float16, the rest float32; errors are those of rounding to 11 bits."""
    rows = prompts(build(name))
    tokens, want = exact(name).run(rows)
    own = write(targets.TRT.llm_graphs(build(name), 64), tmp_path, targets.TRT, "fp16")
    _, got = own.run(rows, tokens)
    assert mean_cosine(got, want) > 0.9999
    proto = onnx.shape_inference.infer_shapes(onnx.load(own.llm), strict_mode=True, data_prop=True)
    values = (*proto.graph.value_info, *proto.graph.input, *proto.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    seen = Counter()
    for node in proto.graph.node:
        if node.op_type in ("Softmax", "LayerNormalization", "Pow", "ReduceMean", "Exp", "TopK", "Tanh", "Log"):
            assert types[node.input[0]] == full, node.name
        elif node.op_type == "MatMul":
            wide = ".wo." in node.input[1]
            assert {types[each] for each in (*node.input, *node.output)} == {full if wide else half}, node.name
        seen[node.op_type] += 1
    assert seen["MatMul"] and seen["Softmax"]
    ends = {value.name for value in (*proto.graph.input, *proto.graph.output)}
    cached = ("past_key", "past_value", "cross_", "new_")
    assert all((types[name] == half) == name.startswith(cached) for name in ends if types[name] in (half, full))


@pytest.mark.parametrize("name", ["opt", *slow("llama", "t5")])
def test_int8_graph_is_symmetric_and_close_to_float32(
    name: str, exact: Callable[[str], LlmGraphs], tmp_path: Path
) -> None:
    """8-bit weights and activations; the limit of the cosine is for random models."""
    rows = prompts(build(name))
    tokens, want = exact(name).run(rows)
    traced = dict(targets.TRT.llm_graphs(build(name), 64))
    ranges = language_ranges(traced, tmp_path, rows, exact(name).start)
    assert not list(tmp_path.iterdir())
    assert all(seen.low < seen.high for each in ranges.values() for seen in each.values())
    own = write(traced.items(), tmp_path, targets.TRT, "int8-static", ranges)
    _, got = own.run(rows, tokens)
    assert mean_cosine(got, want) > 0.98
    proto = onnx.load(own.llm)
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    ends = [node for node in proto.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert {node.op_type for node in ends} == {"QuantizeLinear", "DequantizeLinear"}
    for node in ends:
        assert (tensors[node.input[1]] > 0).all() and not tensors[node.input[2]].any()
    channels = [node for node in ends if node.input[0] in tensors]
    assert channels and all(tensors[node.input[1]].shape == (tensors[node.input[0]].shape[1],) for node in channels)


@pytest.mark.parametrize("name", ["opt", *slow("llama", "t5")])
def test_int4_graph_has_merged_products_in_int4(name: str, exact: Callable[[str], LlmGraphs], tmp_path: Path) -> None:
    """test_int4_pads_incomplete_blocks_and_odd_columns compares the numbers with rounded weights."""
    rows = prompts(build(name))
    tokens, unrounded = exact(name).run(rows)
    own = write(targets.TRT.llm_graphs(build(name), 64), tmp_path, targets.TRT, "int4", block=32)
    assert mean_cosine(own.run(rows, tokens)[1], unrounded) > 0.9
    source = onnx.load(own.llm)
    stored = {tensor.name: tensor.data_type for tensor in source.graph.initializer}
    nodes = [node for node in source.graph.node if node.op_type == "DequantizeLinear"]
    assert nodes and all(stored[node.input[0]] == onnx.TensorProto.INT4 for node in nodes)
    layers = sum(value.name.startswith("past_key_") for value in source.graph.input)
    if name != "t5":
        assert len(nodes) == 4 * layers + 1  # merged q, k, v; merged gate and up; o and down; the head


def check_build(graph: Path, **sizes: tuple[int, int, int]) -> None:
    """Build a plan, which needs no GPU, if tensorrt-rtx is installed."""
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        trt, settings = builder.load_tensorrt("tensorrt_rtx"), builder.Settings(("SM86", "SM89", "SM120"))
        assert builder.build(trt, graph, [{"B": (1, 2, 3), **sizes}], settings)


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
            model = trace.trace(trace.GraphSpec(name, part, given, ["y"], axes), targets.TRT.opset)
            exporter.write(name, model, group)
    precisions = {name: component.precision for name, component in exporter.verifier.components.items()}
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
    check_build(tmp_path / "llm.onnx", S=(1, 5, 8))


def test_int8_convolutions_are_accurate_and_build(tmp_path: Path) -> None:
    """Scales are for the first axis of the weights; the stem and the depthwise convolution stay float16."""
    torch.manual_seed(SEED)
    pixels, layer, relu = torch.randn(2, 3, 17, 21), torch.nn.Conv2d, torch.nn.ReLU6()
    layers = layer(3, 16, 3, stride=2), relu, layer(16, 16, 3, padding=1, groups=16), relu, layer(16, 16, 1)
    encoder = torch.nn.Sequential(*layers, torch.nn.Flatten(2)).eval()
    part = trace.GraphSpec("vision", encoder, {"pixels": pixels}, ["vision_features"], {"pixels": {0: "B"}})
    model = trace.trace(part, targets.TRT.opset)
    ranges = batch_ranges(model, tmp_path, "vision", [{"pixels": pixels.numpy()}])
    assert len(ranges) == 1
    targets.TRT.apply(model, "int8-static", Quantizer(BlockFormat(32), ranges=ranges))
    trace.save(model, tmp_path / "vision.onnx", None)
    got = unfused_session(tmp_path / "vision.onnx", 1).run(None, {"pixels": pixels.numpy()})[0]
    assert mean_cosine(got, part.run({"pixels": pixels.numpy()})["vision_features"]) > 0.999
    nodes = onnx.load(tmp_path / "vision.onnx").graph.node
    axes = [node.attribute[0].i for node in nodes if node.op_type == "DequantizeLinear" and node.attribute]
    assert axes == [0]
    check_build(tmp_path / "vision.onnx")
