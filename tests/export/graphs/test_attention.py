"""The graph `attention` has the probabilities of transformers' cross-attention."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from blip2rt.modeling.checkpoint import Checkpoint
from blip2rt.modeling.vision import VisionConfig
from blip2rt_export.checks.sessions import session
from blip2rt_export.graphs import qformer, trace
from tests.seeds import new_seed, seed_of
from tests.tiny import blip2 as tiny_blip2


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
        (50, (224, 224), (7, 7)),
        (64, (224, 224), (8, 8)),
        (30, (224, 224), (5, 5)),
        (11, (32, 320), (1, 10)),
        (3, (7, 224), None),
    ],
)
def test_patches_are_the_last_positions(positions: int, size: tuple[int, int], grid: tuple[int, int] | None) -> None:
    height, width = size
    config = VisionConfig(source="timm:any", height=height, width=width, positions=positions, features=8)
    assert qformer.patch_grid(config) == grid
