"""The language model's graphs of the target trt in ONNX Runtime, against the target ort: floats, int8, int4."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from blip2rt.modeling.quantize import dequantize_blockwise, quantize_blockwise
from blip2rt_export import targets
from blip2rt_export.checks.calibration import language_ranges
from blip2rt_export.checks.sessions import session
from blip2rt_export.checks.stepper import TrtStepper
from blip2rt_export.checks.verify import LlmGraphs, llm_logits, mean_cosine
from blip2rt_export.trt import precision as trt_precision
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


@pytest.mark.parametrize("name", ["opt", *slow("t5", "llama", "qwen2", "narrow", "tied")])
def test_tokens_match_the_target_ort(name: str, exact: Callable[[str], LlmGraphs], tmp_path: Path) -> None:
    """Greedy tokens of rows of different length, and logits within float32 rounding."""
    rows = prompts(build(name))
    want_tokens, want = write(targets.ORT.llm_graphs(build(name), 64), tmp_path, targets.ORT).run(rows)
    _, got = exact(name).run(rows, want_tokens)
    assert np.abs(got - want).max() < 1e-4 * max(1, np.abs(want).max())
    best = np.sort(want, -1)
    clear = best[..., -1] - best[..., -2] > 1e-3  # rounding decides near ties
    assert clear.mean() > 0.5 and (got.argmax(-1) == want_tokens)[clear].all()


@pytest.mark.parametrize("name", ["llama", *slow("t5", "opt", "qwen2", "narrow", "gemma", "tied")])
def test_in_place_cache_matches_pytorch(name: str, tmp_path: Path) -> None:
    """Logits are PyTorch's, as those of the target ort are, for rows of unequal length: each slot that is not filled
    holds a large number. In fp16 too; tests/export/trt/test_tensorrt_builds.py builds it."""
    model, rows = build(name), prompts(build(name))
    traced = dict(targets.TRT_NATIVE.llm_graphs(model, 64))
    kept = {graph: each.clone() for graph, each in traced.items()}
    native = write(kept.items(), tmp_path / "fp32", targets.TRT_NATIVE)
    ends = onnx.load(native.llm, load_external_data=False)
    assert ends.opset_import[0].version == 24 and "past_mask" not in [value.name for value in ends.graph.input]
    assert {"TensorScatter", "Attention"} <= {node.op_type for node in ends.graph.node}
    tokens, got = native.run(rows)
    want = llm_logits(model, rows, tokens, native.start)
    assert np.abs(got - want).max() < 1e-4 * max(1, np.abs(want).max())
    half = write(traced.items(), tmp_path / "fp16", targets.TRT_NATIVE, "fp16")
    assert mean_cosine(half.run(rows, tokens)[1], want) > 0.9999


def test_step_returns_top_k_and_log_sum_exp(exact: Callable[[str], LlmGraphs]) -> None:
    """The most likely tokens in order, their logits, and the log of the sum for log-probabilities."""
    rows = prompts(build("wide"))[:1]
    stepper = TrtStepper(session(exact("wide").llm, 1), 1, 8)
    logits = stepper.prefill(rows[0][None], np.array([7]))[0].astype(np.float64)
    top, tokens, total = (stepper.top_k[name][0] for name in ("top_logits", "top_tokens", "log_sum_exp"))
    assert len(tokens) == 64 and set(tokens) == set(np.argsort(-logits)[:64])
    assert np.array_equal(top, np.sort(top)[::-1]) and np.allclose(top, logits[tokens])
    assert total == pytest.approx(np.log(np.exp(logits).sum()), abs=1e-5)


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
    ranges = language_ranges(traced, tmp_path, rows, exact(name).start, trt_precision.operands)
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


@pytest.mark.parametrize(
    ("name", "block"),
    [("opt", 32), *(pytest.param(*each, marks=pytest.mark.slow) for each in (("llama", 16), ("t5", 16), ("opt", 128)))],
)
def test_int4_graph_computes_with_its_stored_weights(
    name: str, block: int, exact: Callable[[str], LlmGraphs], tmp_path: Path
) -> None:
    """It matches a float32 graph with the same weights."""
    rows = prompts(build(name))
    tokens, unrounded = exact(name).run(rows)
    own = write(targets.TRT.llm_graphs(build(name), 64), tmp_path, targets.TRT, "int4", block=block)
    _, got = own.run(rows, tokens)
    table = with_table(exact(name).embed, tmp_path / "table.onnx", block)
    rounded = replace(exact(name), llm=with_weights(exact(name).llm, own.llm, block), embed=table)
    if own.encoder is not None:
        rounded = replace(rounded, encoder=with_weights(exact(name).encoder, own.encoder, block))
    _, want = rounded.run(rows, tokens)
    assert mean_cosine(got, want) > 0.999 and mean_cosine(got, unrounded) > 0.9  # in float16 against float32
    assert not np.allclose(want, unrounded, atol=1e-2)


def with_weights(graph: Path, quantized: Path, block: int) -> Path:
    """Copy `graph` with the dequantized weights of the int4 graph `quantized`."""
    proto, source = onnx.load(graph), onnx.load(quantized)
    assert source.opset_import[0].version == 21
    stored = {tensor.name: tensor for tensor in source.graph.initializer}
    nodes = [node for node in source.graph.node if node.op_type == "DequantizeLinear"]
    assert nodes and not any(node.op_type == "QuantizeLinear" for node in source.graph.node)
    layers = sum(value.name.startswith("past_key_") for value in source.graph.input)
    if layers and not any(value.name.startswith("cross_") for value in source.graph.input):
        assert len(nodes) == 4 * layers + 1  # merged q, k, v; merged gate and up; o and down; the head
    own = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in nodes:
        codes, scales, zeros = (onnx.numpy_helper.to_array(stored[name]).astype(np.float32) for name in node.input)
        assert stored[node.input[0]].data_type == stored[node.input[2]].data_type == onnx.TensorProto.INT4
        assert scales.shape == zeros.shape == (len(codes) // block, codes.shape[1]) and not zeros.any()
        name = node.input[0].removesuffix(".codes")
        offsets = onnx.numpy_helper.to_array(stored[f"{name}.offsets"]).astype(np.float32)
        assert offsets.shape == scales.shape and offsets.any()
        weight = codes * scales.repeat(block, 0) + offsets.repeat(block, 0)
        for part in name.split("+"):  # products of one operand are merged
            rows, columns = own[part].dims
            own[part].CopyFrom(onnx.numpy_helper.from_array(weight[:rows, :columns], part))
            weight = weight[:, columns:]
        assert weight.shape[1] == 0
    copy = quantized.with_name(f"{quantized.stem}.float.onnx")
    onnx.save(proto, copy)
    return copy


def with_table(graph: Path, copy: Path, block: int) -> Path:
    """Copy the float32 graph `embed` with its table rounded to 4 bits."""
    proto = onnx.load(graph)
    [table] = [tensor for tensor in proto.graph.initializer if len(tensor.dims) == 2]
    values = torch.from_numpy(onnx.numpy_helper.to_array(table).copy())
    rounded = dequantize_blockwise(quantize_blockwise(values, 4, block)).numpy()
    table.CopyFrom(onnx.numpy_helper.from_array(rounded, table.name))
    onnx.save(proto, copy)
    return copy
