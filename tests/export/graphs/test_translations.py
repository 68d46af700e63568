"""PyTorch operators become ONNX operators that the core allows in untrusted graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from blip2rt.modeling.checkpoint import Checkpoint
from blip2rt.modeling.vision import VisionConfig
from blip2rt.native import native
from blip2rt_export.checks.sessions import session
from blip2rt_export.graphs import qformer, trace
from tests.seeds import new_seed, seed_of
from tests.tiny import blip2 as tiny_blip2
from tests.tiny.trace_cache import cached_traces


class TokenTypes(torch.nn.Module):
    """BERT's way to the type of each position."""

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        table = torch.arange(100, 164)[None].expand(positions.shape[0], -1)
        return torch.gather(table, dim=1, index=positions) * 1.5


class Corrected(torch.nn.Module):
    """Gemma 3n's way to add to some of its predictions."""

    def __init__(self, start: int | None, end: int | None) -> None:
        super().__init__()
        self.start, self.end = start, end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        corrected = x * 2
        corrected[:, self.start : self.end] += x[:, :1]
        return corrected


def assert_equal(module: torch.nn.Module, name: str, example: torch.Tensor, given: np.ndarray, folder: Path) -> None:
    """Compare the traced graph, which the core has to allow, with the module."""
    spec = trace.GraphSpec("p", module, {name: example}, ["y"], {name: {0: "B"}})
    trace.save(trace.trace(spec), folder / "p.onnx", None)
    native.check_graph(str(folder / "p.onnx"))
    (got,) = session(folder / "p.onnx", 1).run(None, {name: given})
    np.testing.assert_allclose(got, spec.run({name: given})["y"], rtol=1e-6)


def test_gather_along_rows_is_allowed(tmp_path) -> None:
    positions = np.random.default_rng(new_seed()).integers(0, 64, (3, 5))
    assert_equal(TokenTypes(), "positions", torch.zeros(2, 5, dtype=torch.int64), positions, tmp_path)


@pytest.mark.parametrize(("start", "end"), [(1, None), (None, 2), (-2, -1)])
def test_assigning_to_a_slice_is_allowed(start: int | None, end: int | None, tmp_path) -> None:
    x = np.random.default_rng(new_seed()).normal(size=(3, 4, 6)).astype(np.float32)
    assert_equal(Corrected(start, end), "x", torch.zeros(2, 4, 6), x, tmp_path)


class Scaled(torch.nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(300, 4)
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * self.factor


def part(module: torch.nn.Module) -> trace.GraphSpec:
    return trace.GraphSpec("p", module, {"x": torch.zeros(2, 300)}, ["y"], {"x": {0: "B"}})


def test_cached_graph_gets_the_current_weights(tmp_path, monkeypatch) -> None:
    captured, whole = [], trace.capture
    monkeypatch.setattr(trace, "capture", lambda *given: captured.append(given) or whole(*given))
    x = {"x": np.random.default_rng(0).normal(size=(3, 300)).astype(np.float32)}

    def answer(module: torch.nn.Module, name: str) -> np.ndarray:
        trace.save(trace.trace(part(module)), tmp_path / f"{name}.onnx", None)
        return session(tmp_path / f"{name}.onnx", 1).run(None, x)[0]

    one, two = Scaled(2.0), Scaled(2.0)
    plain = answer(two, "plain")
    with cached_traces(tmp_path):
        answer(one, "one")
        before = len(captured)
        np.testing.assert_array_equal(answer(two, "two"), plain)
        assert len(captured) == before
        answer(Scaled(3.0), "three")
        assert len(captured) == before + 1
    assert (tmp_path / "two.onnx").read_bytes() == (tmp_path / "plain.onnx").read_bytes()


@pytest.mark.long(5, "a traced graph")
def test_maps_equal_transformers(tmp_path: Path) -> None:
    torch.manual_seed(seed_of(__name__))
    folder = tiny_blip2.generative(tmp_path / "hf", tiny_blip2.TEXT_CONFIGS["opt"]())
    checkpoint = Checkpoint(folder)
    _, spec = qformer.generative_graphs(checkpoint.load(llm=False))
    trace.save(trace.trace(spec), tmp_path / "attention.onnx", None)
    vision = checkpoint.config.vision
    features = np.random.default_rng(new_seed()).normal(size=(3, vision.positions, vision.features))
    given = {"vision_features": features.astype(np.float32)}
    (got,) = session(tmp_path / "attention.onnx", 1).run(None, given)
    theirs = transformers.Blip2ForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")
    tokens = theirs.query_tokens.expand(3, -1, -1)
    with torch.no_grad():
        seen = theirs.vision_model.post_layernorm(torch.from_numpy(given["vision_features"]))
        crossed = theirs.qformer(query_embeds=tokens, encoder_hidden_states=seen, output_attentions=True)
    maps = [each for each in crossed.cross_attentions if each is not None and each.shape[-1] == vision.positions]
    want = torch.stack(maps).mean((0, 2))[..., 1:].numpy()  # without [CLS]
    grid = qformer.patch_grid(vision)
    assert grid is not None and got.shape == (3, tiny_blip2.QUERIES, *grid)
    np.testing.assert_allclose(got.reshape(want.shape), want, atol=1e-6)


@pytest.mark.parametrize(
    ("positions", "size", "grid"),
    [
        (257, (224, 224), (16, 16)),
        (196, (224, 224), (14, 14)),  # without [CLS]
        (261, (224, 224), (16, 16)),  # with registers
        (1 + 8 * 16, (112, 224), (8, 16)),
        (11, (32, 320), (1, 10)),
        (3, (7, 224), None),
    ],
)
def test_patches_are_the_last_positions(positions: int, size: tuple[int, int], grid: tuple[int, int] | None) -> None:
    height, width = size
    config = VisionConfig(source="timm:any", height=height, width=width, positions=positions, features=8)
    assert qformer.patch_grid(config) == grid
