"""The graphs of language models, T5 too, against Hugging Face: rows of different length, prefill and steps."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from blip2rt.errors import Blip2rtError
from blip2rt.modeling.quantize import round_weights
from blip2rt_export import targets
from blip2rt_export.checks.llm import Stepper
from blip2rt_export.checks.sessions import session
from blip2rt_export.checks.verify import run
from blip2rt_export.graphs import t5, trace
from blip2rt_export.precision.quantizer import BlockFormat, Quantizer
from blip2rt_export.precision.weight_only import quantize_weights
from tests.seeds import new_seed, seed_of
from tests.tiny import onnx_validity
from tests.tiny.language_models import build, write
from tests.tiny.llm_configs import CONFIGS, HIDDEN, VOCAB

pytestmark = pytest.mark.long(36, "each architecture's graphs, traced and run")

SEED = seed_of(__name__)
SWEPT = ("gemma2", "mistral", "qwen3")  # `make parity` compares them too


def export(name: str, folder: Path, precision: str = "fp32") -> torch.nn.Module:
    model = build(name, SEED)
    write(targets.ORT.llm_graphs(model, 64), folder, targets.ORT, precision)
    return model


def reference(model, embeds: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Return logits after the last valid position of each row, computed row by row without padding or cache."""
    rows = [model(inputs_embeds=embeds[i : i + 1, :n]).logits[0, -1] for i, n in enumerate(lengths)]
    return torch.stack(rows)


def compare(model, folder: Path, tolerance: float, batch: int = 3, steps: int = 4) -> None:
    rng = np.random.default_rng(SEED)
    stepper = Stepper(session(folder / "llm.onnx", 1), batch, capacity=16)
    embed = session(folder / "embed.onnx", 1)
    lengths = rng.integers(3, 8, batch)
    lengths[0] = 8
    embeds = rng.normal(size=(batch, 8, HIDDEN)).astype(np.float32)
    sequence = [torch.from_numpy(embeds[i, :n]) for i, n in enumerate(lengths)]
    logits = stepper.prefill(embeds, lengths)
    with torch.no_grad():
        for step in range(steps + 1):
            padded = torch.nn.utils.rnn.pad_sequence(sequence, batch_first=True)
            want = reference(model, padded, [len(row) for row in sequence]).numpy()
            assert np.abs(logits - want).max() < tolerance, f"step {step}"
            ids = rng.integers(0, VOCAB, (batch, 1))
            rows = model.get_input_embeddings()(torch.from_numpy(ids))
            got = embed.run(None, {"token_ids": ids})[0]
            assert np.abs(got - rows.numpy()).max() < 1e-6
            sequence = [torch.cat((row, new)) for row, new in zip(sequence, rows, strict=True)]
            logits = stepper.step(got)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in SWEPT))
        for name in sorted(CONFIGS.keys() - {"t5", "tied", "wide"})
    ],
)
def test_fp32_graph_equals_hugging_face(name: str, tmp_path: Path) -> None:
    model = export(name, tmp_path)
    assert not onnx_validity.operators(tmp_path / "llm.onnx")["Div"], "norms are fused"
    compare(model, tmp_path, tolerance=1e-4)
    compare(model, tmp_path, tolerance=1e-4, batch=1)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_int4_graph_equals_dequantized_weights(name: str, tmp_path: Path) -> None:
    """accuracy_level 4 rounds activations to 8 bits for each block, which the tolerance allows for."""
    model = export(name, tmp_path, "int4")
    round_weights(model, bits=4, block=32)
    compare(model, tmp_path, tolerance=0.1)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("width", [96, 128])
def test_embedding_with_an_odd_number_of_blocks(width: int, bits: int, tmp_path: Path) -> None:
    """GatherBlockQuantized and MatMulNBits pack zero points differently if a row has an odd number of blocks."""
    torch.manual_seed(SEED)
    table, example = torch.nn.Embedding(51, width), {"ids": torch.zeros(2, 3, dtype=torch.int64)}
    spec = trace.GraphSpec("e", table, example, ["out"], {"ids": {0: "B", 1: "S"}})
    graph = trace.trace(spec)
    assert quantize_weights(graph, bits, Quantizer(BlockFormat(32))) == 1
    trace.save(graph, tmp_path / "e.onnx", None)
    ids = np.arange(51)[None]
    got = session(tmp_path / "e.onnx", 1).run(None, {"ids": ids})[0]
    round_weights(table, bits, 32)
    assert np.abs(got - spec.run({"ids": ids})["out"]).max() < 1e-6


def write_graphs(model: Any, folder: Path, precision: str = "fp32") -> None:
    write(targets.ORT.llm_graphs(model, 64), folder, targets.ORT, precision, block=16)


def make_stepper(folder: Path, embeds: np.ndarray, mask: np.ndarray, capacity: int) -> Stepper:
    """Run the encoder, and open the decoder with its output."""
    encoded = run(folder / "encoder.onnx", {"inputs_embeds": embeds, "attention_mask": mask})
    return Stepper(session(folder / "llm.onnx", 1), len(embeds), capacity, {**encoded, "encoder_mask": mask})


def look_up(folder: Path, tokens: np.ndarray) -> np.ndarray:
    return run(folder / "embed.onnx", {"token_ids": tokens})["token_embeds"]


@pytest.mark.parametrize("name", ["t5", "tied"])
@torch.no_grad()
def test_graphs_equal_hugging_face(name: str, tmp_path: Path) -> None:
    """Teacher-forced steps after image and prompt went through the encoder."""
    model = build(name, SEED)
    write_graphs(model, tmp_path)
    rng = np.random.default_rng(SEED)
    batch, longest, steps = 3, 20, 16  # beyond the largest relative distance
    lengths = [longest, 7, 11]
    embeds = rng.normal(size=(batch, longest, HIDDEN)).astype(np.float32)
    mask = (np.arange(longest)[None] < np.array(lengths)[:, None]).astype(np.int64)
    stepper = make_stepper(tmp_path, embeds, mask, steps + 1)
    last_key = stepper.encoded[f"cross_key_{model.config.num_decoder_layers - 1}"]
    assert last_key.shape == (batch, 4, longest, 16)
    tokens = rng.integers(0, VOCAB, (batch, steps))
    tokens[:, 0] = 0
    want = model(
        inputs_embeds=torch.from_numpy(embeds),
        attention_mask=torch.from_numpy(mask),
        decoder_input_ids=torch.from_numpy(tokens),
    ).logits.numpy()
    got = stepper.prefill(look_up(tmp_path, tokens[:, :1]), np.ones(batch, np.int64))
    for step in range(steps):
        assert np.abs(got - want[:, step]).max() < 1e-4 * max(1, np.abs(want).max()), f"step {step}"
        if step + 1 < steps:
            got = stepper.step(look_up(tmp_path, tokens[:, step + 1 : step + 2]))


def test_int4_does_not_quantize_relative_biases(tmp_path: Path) -> None:
    model = build("t5", new_seed())
    write_graphs(model, tmp_path, "int4")
    operators = [node.op_type for node in onnx.load(tmp_path / "llm.onnx", load_external_data=False).graph.node]
    assert "MatMulNBits" in operators and "GatherBlockQuantized" not in operators
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    round_weights(model, 4, 16, t5.FLOAT_TABLE)
    same = {name for name, weight in model.named_parameters() if torch.equal(weight, before[name])}
    assert {name for name in before if "relative_attention_bias" in name} <= same and "shared.weight" not in same


def test_decoder_without_a_start_token_is_rejected() -> None:
    model = build("t5", SEED)
    assert t5.start_token(model) == 0
    model.config.decoder_start_token_id, model.generation_config.decoder_start_token_id = None, 3
    assert t5.start_token(model) == 3
    model.generation_config.decoder_start_token_id = None
    with pytest.raises(Blip2rtError, match="decoder_start_token_id"):
        t5.start_token(model)
