"""The llm and embed graphs against Hugging Face: fresh random tiny models, unequal rows, prefill and steps."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("onnxscript")

from blip2rt.modeling.quantize import dequantize_blockwise, quantize_blockwise, round_weights
from export.checks.sessions import session
from export.checks.stepper import Stepper
from export.graphs import llm, trace
from export.precision.quantizer import BlockFormat, Quantizer
from export.precision.weight_only import quantize_weights
from tests.seeds import seed_of
from tests.tiny import onnx_validity
from tests.tiny.language_models import build
from tests.tiny.llm_configs import CONFIGS, HIDDEN, VOCAB

pytestmark = pytest.mark.long(22)

SEED = seed_of(__name__)


def export(model, folder: Path, bits: int | None = None, block: int = 32) -> None:
    with contextlib.closing(trace.DataFile(folder, "llm.data")) as data:
        for name, graph in (("llm", llm.trace_llm(model)), ("embed", trace.trace(llm.embed_graph(model)))):
            if bits:
                assert quantize_weights(graph, bits, Quantizer(BlockFormat(block)))
            trace.save(graph, folder / f"{name}.onnx", data)


def reference(model, embeds: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Logits after the last valid position of each row, computed row by row: no padding, no cache."""
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
    with torch.no_grad():
        logits = stepper.prefill(embeds, lengths)
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


SWEPT = ("gemma2", "mistral", "qwen3")  # `make parity` compares them too


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in SWEPT else name
     for name in sorted(CONFIGS.keys() - {"t5", "tied", "wide"})],
)  # fmt: skip
def test_fp32_graph_equals_hugging_face(name: str, tmp_path: Path) -> None:
    model = build(name, SEED)
    export(model, tmp_path)
    assert not onnx_validity.faults(tmp_path)
    assert not onnx_validity.operators(tmp_path / "llm.onnx")["Div"], "a norm is one kernel"
    compare(model, tmp_path, tolerance=1e-4)
    compare(model, tmp_path, tolerance=1e-4, batch=1)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_int4_graph_equals_dequantized_weights(name: str, tmp_path: Path) -> None:
    """accuracy_level 4 rounds activations to 8 bits, block by block: that is what the tolerance allows."""
    model = build(name, SEED)
    export(model, tmp_path, bits=4)
    round_weights(model, bits=4, block=32)
    compare(model, tmp_path, tolerance=0.1)


@pytest.mark.parametrize("width", [96, 128, 100])
def test_what_training_saw_is_what_ships(width: int) -> None:
    """Rounded weights quantize to themselves."""
    weight = torch.randn(50, width, generator=torch.Generator().manual_seed(SEED))
    once = quantize_blockwise(weight, 4, 32)
    again = quantize_blockwise(dequantize_blockwise(once), 4, 32)
    assert torch.equal(dequantize_blockwise(again), dequantize_blockwise(once))
    assert torch.equal(again.codes, once.codes) and torch.equal(again.scales, once.scales)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("width", [96, 128])
def test_embedding_of_an_odd_number_of_blocks(width: int, bits: int, tmp_path: Path) -> None:
    """The two ops pack zero points differently where the blocks of a row are odd in number."""
    torch.manual_seed(SEED)
    table = torch.nn.Embedding(51, width)
    part = trace.GraphSpec(
        "e", table, {"ids": torch.zeros(2, 3, dtype=torch.int64)}, ["out"], {"ids": {0: "B", 1: "S"}}
    )
    graph = trace.trace(part)
    assert quantize_weights(graph, bits, Quantizer(BlockFormat(32))) == 1
    trace.save(graph, tmp_path / "e.onnx", None)
    ids = np.arange(51)[None]
    got = session(tmp_path / "e.onnx", 1).run(None, {"ids": ids})[0]
    round_weights(table, bits, 32)
    assert np.abs(got - part.run({"ids": ids})["out"]).max() < 1e-6
