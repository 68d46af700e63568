"""Every graph of the target trt is parsed and built by tensorrt-rtx for three GPUs, without a GPU.

The graphs of tiny random models are traced once and brought to each precision, with made-up ranges for int8: what
compiles does not depend on them. The slow tests go the whole way, checkpoint -> `blip2rt-export --target trt` ->
`blip2rt-build --check`, also in nano's geometry.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

tensorrt_rtx = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx: pip install 'blip2rt[trt-check]'")
import onnx
import transformers

import blip2rt
from blip2rt.backends.trt import builder
from blip2rt.backends.trt import cli as build
from blip2rt.bundle import read
from blip2rt.errors import BackendError
from blip2rt.modeling.blip2 import Blip2Config
from blip2rt.modeling.checkpoint import Checkpoint, save_model
from blip2rt.modeling.llm import LlmConfig
from blip2rt.modeling.qformer import QFormerConfig
from blip2rt.modeling.vision import VisionConfig
from blip2rt_export import describe, targets
from blip2rt_export.graphs import qformer, trace, vision
from blip2rt_export.precision.activations import Range
from blip2rt_export.precision.quantizer import BlockFormat, Quantizer
from blip2rt_export.trt import precision as trt_precision
from tests.export.commands_in_process import export
from tests.seeds import seed_of
from tests.tiny import blip2 as tiny_blip2
from tests.tiny import language_models
from tests.tiny import training as tiny_training
from tests.tiny.llm_configs import CONFIGS

pytestmark = pytest.mark.long(90, "NVIDIA's builder parses and builds each graph")

SEED = seed_of(__name__)
FAMILIES = ("opt", "llama", "t5")
CHOICES = {"fp16": {}, "int8": dict.fromkeys(("vision", "qformer", "llm"), "int8"), "int4": {"llm": "int4"}}
SIZES = {"B": (1, 2, 3), "T": (64, 64, 64), "S": (1, 8, 32), "S_enc": (1, 8, 32), "L": (1, 8, 16)}
SOURCES = ({"part": "all", "name": "random numbers", "licence": "CC0-1.0", "origin": "the tests"},)


def nano(folder: Path) -> tuple[Blip2Config, Blip2Config]:
    """Both stages of nano with random weights: its checkpoints are not here."""
    bert, encoder = str(tiny_training.bert_folder(folder / "bert")), VisionConfig()
    sizes = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "max_position_embeddings": 8192}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "num_hidden_layers": 30}
    language = transformers.LlamaConfig(**sizes, **heads, tie_word_embeddings=True, eos_token_id=1)
    source = tiny_training.llm_folder(folder / "llm")
    transformers.LlamaForCausalLM(language).save_pretrained(source)
    llm = LlmConfig(str(source), bits=4, block=64, end="<|end|>")
    shared = {"qformer_init": bert, "sources": SOURCES}
    first = Blip2Config(1, encoder, QFormerConfig(layers=6), embed_dim=256, **shared)
    return first, Blip2Config(2, encoder, QFormerConfig(layers=6, text_branch=False), llm, **shared)


def parts(name: str, folder: Path) -> Iterator[tuple[str, Any]]:
    """Graphs in float32 of a family's language model, of what lies before it ("image"), or of "retrieval".

    "FAMILY, native": the graph writes its cache.
    """
    family, _, native = name.partition(", ")
    if native:
        yield from targets.TRT_NATIVE.llm_graphs(language_models.build(family, SEED), 64)
        return
    if name in FAMILIES:
        model = Checkpoint(tiny_blip2.generative(folder, CONFIGS[name]())).load(vision=False)
        yield from targets.TRT.llm_graphs(model.llm, 64)
        return
    if name == "retrieval":
        found = qformer.retrieval_graphs(Checkpoint(tiny_blip2.retrieval(folder)).load(vision=False))
    else:
        model = Checkpoint(tiny_blip2.generative(folder, CONFIGS["opt"]())).load()
        image = describe.image_spec(model.config.vision)
        found = [vision.vision_graph(model.vision, image), *qformer.generative_graphs(model)]
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
            targets.TRT.apply(model, precision, Quantizer(BlockFormat(64), data.store_large), ranges)
            trace.save(model, folder / f"{name}.onnx", data)
    return sorted(folder.glob("*.onnx"))


def plan(graph: Path) -> memoryview:
    """Build a plan for the three GPUs; a language model also gets a profile of one position."""
    profiles = [{**SIZES, "S": (1, 1, 1)}, SIZES] if graph.stem == "llm" else [SIZES]
    settings = builder.Settings(build.CHECKED)
    return builder.build(builder.load_tensorrt("tensorrt_rtx"), graph, profiles, settings)


def layers(graph: Path) -> Counter[str]:
    """Count the layers that TensorRT's parser creates for a language model, by type."""
    log = builder.logger(tensorrt_rtx)
    made = builder.create(log, tensorrt_rtx.Builder)
    network = made.create_network(1 << int(tensorrt_rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert builder._parse(tensorrt_rtx.OnnxParser(network, log), graph, [{**SIZES, "S": (1, 1, 1)}, SIZES])
    return Counter(network.get_layer(index).type.name for index in range(network.num_layers))


@pytest.mark.parametrize("precision", ["fp16", "int8-static", "int4"])
@pytest.mark.parametrize("name", FAMILIES)
def test_tensorrt_builds_language_models(name: str, precision: str, traced: Callable[..., Any], tmp_path: Path) -> None:
    files = write(traced(name), precision, tmp_path)
    assert {file.stem for file in files} == {"llm", "embed"} | ({"encoder"} if name == "t5" else set())
    assert all(plan(file) for file in files)
    proto = onnx.load(tmp_path / "llm.onnx", load_external_data=False)
    quantizers = [node for node in proto.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    seen = [(node.op_type, node.input[0]) for node in quantizers]
    types = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    weights = {types[first] for _, first in seen if first in types}
    stored = {"int8-static": onnx.TensorProto.INT8, "int4": onnx.TensorProto.INT4}
    assert weights == {kind for name, kind in stored.items() if name == precision}
    assert ("QuantizeLinear" in {op for op, _ in seen}) == (precision == "int8-static")


NATIVE = [("opt", "fp16"), ("llama", "fp16"), ("llama", "int8-static"), ("qwen2", "fp16"), ("t5", "int4")]


@pytest.mark.parametrize(
    ("name", "precision"),
    [("llama", "int4"), ("t5", "fp16"), *(pytest.param(*each, marks=pytest.mark.slow) for each in NATIVE)],
)
def test_tensorrt_builds_in_place_caches(name: str, precision: str, traced: Callable[..., Any], tmp_path: Path) -> None:
    """TensorScatter and Attention become native layers."""
    write({"llm": traced(f"{name}, native")["llm"]}, precision, tmp_path)
    graph = tmp_path / "llm.onnx"
    assert plan(graph)
    operators = Counter(node.op_type for node in onnx.load(graph, load_external_data=False).graph.node)
    assert operators["TensorScatter"] == 2 * operators["Attention"] > 0
    if hasattr(tensorrt_rtx.LayerType, "KV_CACHE_UPDATE"):
        made = layers(graph)
        assert made["KV_CACHE_UPDATE"] == operators["TensorScatter"]
        assert made["ATTENTION_INPUT"] == made["ATTENTION_OUTPUT"] == operators["Attention"]


@pytest.mark.parametrize(
    ("name", "precision"),
    [("image", "fp16"), ("image", "int8-static"), ("image", "fp32")]
    + [pytest.param("retrieval", each, marks=pytest.mark.slow) for each in ("fp16", "fp32")],
)
def test_tensorrt_builds_image_and_text_graphs(
    name: str, precision: str, traced: Callable[..., Any], tmp_path: Path
) -> None:
    files = write(traced(name), precision, tmp_path)
    assert len(files) == {"image": 3, "retrieval": 3}[name]
    assert all(plan(file) for file in files)


def test_error_of_a_broken_graph_names_its_node(traced: Callable[..., Any], tmp_path: Path) -> None:
    """An unknown operator, and a product of two types, at a random node."""
    file = tmp_path / "llm.onnx"
    write(traced("opt"), "fp16", tmp_path)
    whole = onnx.load(file)
    chosen = random.choice([i for i, node in enumerate(whole.graph.node) if node.op_type == "MatMul"])
    for change in ("operator", "type"):
        broken = onnx.ModelProto()
        broken.CopyFrom(whole)
        node = broken.graph.node[chosen]
        if change == "operator":
            node.op_type = "Nonsense"
        else:
            wide = onnx.helper.make_node("Cast", [node.input[0]], ["wide"], to=onnx.TensorProto.FLOAT)
            node.input[0] = "wide"
            broken.graph.node.insert(chosen, wide)
        onnx.save(broken, file)
        with pytest.raises(BackendError) as refused:
            plan(file)
        assert node.name and node.name in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("name", [*FAMILIES, "nano"])
def test_commands_export_and_check(
    name: str, precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """blip2rt-export, calibrated for int8, then blip2rt-build --check."""
    torch.manual_seed(SEED)
    tiny_training.caption_table(tmp_path, images=12)
    arguments: list[object] = ["--calibration", tmp_path / "images", "--target", "trt"]
    if name == "nano":
        for config in nano(tmp_path):
            (tmp_path / f"stage{config.stage}").mkdir()
            save_model(tiny_blip2.build(config), tmp_path / f"stage{config.stage}")
        arguments += ["--retrieval-checkpoint", tmp_path / "stage1"]
        source = tmp_path / "stage2"
    else:
        source = tiny_blip2.generative(tmp_path / "hf", CONFIGS[name]())
    if name == "nano" or precision == "int4":
        arguments.append("--no-verify")  # random weights lose more precision than a trained model may
    chosen = ",".join(map("=".join, {"llm": "fp16", **CHOICES[precision]}.items()))
    bundle = export(source, tmp_path / "bundle", *arguments, precision=chosen)
    assert build.main([str(bundle), "--check", "--capacity", "64", "--precision", chosen]) == 0
    said, manifest = capsys.readouterr().err, read(bundle).manifest
    assert len(manifest.components) == {"nano": 7, "t5": 5}.get(name, 4)
    assert manifest.target == "trt" and all(f"{component}: a plan" in said for component in manifest.components)
    with pytest.raises(BackendError, match="exported for trt"):
        blip2rt.load(bundle).caption(tmp_path / "images" / "0.jpg")
