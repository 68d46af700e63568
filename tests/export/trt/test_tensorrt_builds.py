"""Every graph of the target trt is parsed and built by tensorrt-rtx for three GPUs, without a GPU.

The graphs of tiny random models are traced once and brought to each precision, with made-up ranges for int8: what
compiles does not depend on them.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

tensorrt_rtx = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx: pip install 'blip2rt[trt-check]'")
import onnx

from blip2rt.backends.trt import builder
from blip2rt.backends.trt import cli as build
from blip2rt.modeling.checkpoint import Checkpoint
from blip2rt_export import assemble, describe, targets
from blip2rt_export.graphs import qformer, trace
from blip2rt_export.precision.activations import Range
from blip2rt_export.precision.quantizer import BlockFormat, Quantizer
from blip2rt_export.trt import precision as trt_precision
from tests.seeds import seed_of
from tests.tiny import blip2 as tiny_blip2
from tests.tiny.llm_configs import CONFIGS

pytestmark = pytest.mark.long(90, "NVIDIA's builder parses and builds each graph")

SEED = seed_of(__name__)
FAMILIES = ("opt", "llama", "t5")
SIZES = {"B": (1, 2, 3), "T": (64, 64, 64), "S": (1, 8, 32), "S_enc": (1, 8, 32), "L": (1, 8, 16)}


def parts(name: str, folder: Path) -> Iterator[tuple[str, Any]]:
    """Graphs in float32 of a family's language model, of what lies before it ("image"), or of "retrieval"."""
    if name in FAMILIES:
        model = Checkpoint(tiny_blip2.generative(folder, CONFIGS[name]())).load(vision=False)
        yield from ((each, graph) for each, graph in targets.TRT.llm_graphs(model.llm, 64) if each != "embed")
        return
    if name == "retrieval":
        found = qformer.graphs(Checkpoint(tiny_blip2.retrieval(folder)).load(vision=False))
    else:
        model = Checkpoint(tiny_blip2.generative(folder, CONFIGS["opt"]())).load()
        image = describe.image_spec(model.config.vision)
        found = [assemble.vision_graph(model.vision, image), *qformer.graphs(model)]
    for part in found:
        yield part.name, trace.trace(part, targets.TRT.opset)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """A function: trace the `parts` of a name once; returns copies."""
    known: dict[str, dict[str, Any]] = {}

    def get(name: str) -> dict[str, Any]:
        if name not in known:
            torch.manual_seed(SEED)
            known[name] = dict(parts(name, tmp_path_factory.mktemp(name)))
        return {graph: model.clone() for graph, model in known[name].items()}

    return get


def write(models: dict[str, Any], precision: str, folder: Path) -> list[Path]:
    """Write the graphs in `precision`."""
    with contextlib.closing(trace.DataFile(folder, "weights.data")) as data:
        for name, model in models.items():
            seen = Range(*np.array([[-3.0], [3.0], [1.0]]), 1.0)
            ranges = {operand: seen for _, operand in trt_precision.quantizable(model)}
            targets.TRT.apply(model, precision, Quantizer(BlockFormat(64), data.store_large, ranges=ranges))
            trace.save(model, folder / f"{name}.onnx", data)
    return sorted(folder.glob("*.onnx"))


def plan(graph: Path) -> memoryview:
    """Build a plan for the three GPUs; a language model also gets a profile of one position."""
    profiles = [{**SIZES, "S": (1, 1, 1)}, SIZES] if graph.stem == "llm" else [SIZES]
    settings = builder.Settings(build.CHECKED)
    return builder.build(builder.load_tensorrt("tensorrt_rtx"), graph, profiles, settings)


@pytest.mark.parametrize("precision", ["fp16", "int8-static", "int4"])
@pytest.mark.parametrize("name", FAMILIES)
def test_tensorrt_builds_language_models(name: str, precision: str, traced: Callable[..., Any], tmp_path: Path) -> None:
    files = write(traced(name), precision, tmp_path)
    assert {file.stem for file in files} == {"llm"} | ({"encoder"} if name == "t5" else set())
    assert all(plan(file) for file in files)
    proto = onnx.load(tmp_path / "llm.onnx", load_external_data=False)
    types = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    weights = {types.get(node.input[0]) for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    weights.discard(None)  # of activations
    stored = {"int8-static": {onnx.TensorProto.INT8}, "int4": {onnx.TensorProto.INT4}}
    assert weights == stored.get(precision, set())


@pytest.mark.parametrize(
    ("name", "precision"),
    [("image", "fp16"), ("image", "int8-static"), ("image", "fp32")]
    + [pytest.param("retrieval", each, marks=pytest.mark.slow) for each in ("fp16", "fp32")],
)
def test_tensorrt_builds_image_and_text_graphs(
    name: str, precision: str, traced: Callable[..., Any], tmp_path: Path
) -> None:
    files = write(traced(name), precision, tmp_path)
    assert len(files) == {"image": 2, "retrieval": 3}[name]
    assert all(plan(file) for file in files)
