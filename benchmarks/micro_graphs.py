"""A bundle's graphs one by one, by pytest-benchmark: `make micro-graphs`; BLIP2RT_BUNDLE names another than nano.

Nothing asserts a time.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

import blip2rt
from blip2rt.options import Options
from blip2rt.text import Prompt


@pytest.fixture(scope="module")
def model() -> blip2rt.Model:
    return blip2rt.load(os.environ.get("BLIP2RT_BUNDLE"))


@pytest.fixture(scope="module")
def pixels(model: blip2rt.Model) -> np.ndarray:
    image = model.bundle.manifest.image
    return np.random.default_rng().normal(0, 1, (1, 3, image.height, image.width)).astype(np.float32)


def test_vision(benchmark: Any, model: blip2rt.Model, pixels: np.ndarray) -> None:
    assert np.isfinite(benchmark(model._backend.vision, pixels)).all()


def test_qformer(benchmark: Any, model: blip2rt.Model, pixels: np.ndarray) -> None:
    vision_features = model._backend.vision(pixels)
    assert np.isfinite(benchmark(model._backend.prefix_embeds, vision_features)).all()


@pytest.mark.parametrize("tokens", [1, 2], ids=["prefill", "prefill_and_a_step"])
def test_llm(benchmark: Any, model: blip2rt.Model, pixels: np.ndarray, tokens: int) -> None:
    prefix_embeds = model._backend.prefix_embeds(model._backend.vision(pixels))
    options = Options(num_beams=1, max_new_tokens=tokens, min_new_tokens=tokens)
    settings = model._language.settings("caption", options, [Prompt()])
    [[(token_ids, _)]] = benchmark(model._backend.generate, prefix_embeds, [model._language.encode(Prompt())], settings)
    assert len(token_ids) == tokens


@pytest.mark.parametrize("component", ["image_embed", "text_embed", "itm"])
def test_retrieval(benchmark: Any, model: blip2rt.Model, pixels: np.ndarray, component: str) -> None:
    if not model.bundle.has(component):
        pytest.skip(f"the bundle has no {component}")
    features = model._backend.vision(pixels)
    token_ids, text_mask = model._qformer_tokenizer.encode(["a dog runs on the beach"])
    calls = {
        "image_embed": (model._backend.image_embeds, features),
        "text_embed": (model._backend.text_embeds, token_ids, text_mask),
        "itm": (model._backend.itm_logits, features, token_ids, text_mask),
    }
    function, *arguments = calls[component]
    assert np.isfinite(benchmark(function, *arguments)).all()
