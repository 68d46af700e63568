"""The llm and embed graphs against Hugging Face: random tiny models, rows of different length, prefill and steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from blip2rt.modeling.quantize import round_weights
from blip2rt_export import targets
from blip2rt_export.checks.sessions import session
from blip2rt_export.checks.stepper import Stepper
from blip2rt_export.graphs import trace
from blip2rt_export.precision.quantizer import BlockFormat, Quantizer
from blip2rt_export.precision.weight_only import quantize_weights
from tests.seeds import seed_of
from tests.tiny import onnx_validity
from tests.tiny.language_models import build, write
from tests.tiny.llm_configs import CONFIGS, HIDDEN, VOCAB

pytestmark = pytest.mark.long(22, "each architecture's graphs, traced and run")

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
