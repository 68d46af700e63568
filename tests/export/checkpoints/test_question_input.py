"""A Q-Former that also reads the question: checkpoint -> bundle -> runtime, against PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import blip2rt
from blip2rt.errors import Blip2rtError, BundleError, CapabilityError
from blip2rt.image import to_pixels
from blip2rt.modeling.bert import BertSource
from blip2rt.modeling.checkpoint import Checkpoint
from blip2rt.modeling.llm import load_tokenizer
from blip2rt_export import convert
from tests.seeds import new_seed, seed_of
from tests.tiny import blip2 as tiny_blip2
from tests.tiny import question_input

pytestmark = pytest.mark.long(12, "whole exports: the question reaches the Q-Former in the bundle")

SEED = seed_of(__name__)
QUESTIONS = ["What is red?", "is the man in the snow with a dog and two cats", "a dog"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, blip2rt.Model]:
    """Our checkpoint, in PyTorch and as a bundle."""
    torch.manual_seed(SEED)
    return question_input.export_model(tmp_path_factory.mktemp("question"))


@torch.no_grad()
def prefix(model: Any, pixels: np.ndarray, texts: list[str]) -> Any:
    """Compute PyTorch's prefix for texts as the Q-Former reads them."""
    tokens = BertSource(model.config.qformer_init).tokenizer(
        texts, padding=True, truncation=True, max_length=9, return_tensors="pt"
    )
    seen = model.vision_features(torch.from_numpy(pixels))
    return model.prefix_embeds(model.query_output(seen, tokens["input_ids"], tokens["attention_mask"]))


def said(model: Any, embeds: Any, prompts: list[str]) -> list[str]:
    """Generate greedily in PyTorch from [prefix | prompt], one by one."""
    tokenizer = load_tokenizer(model.config.llm.source)
    texts = []
    for row, prompt in zip(embeds, prompts, strict=True):
        ids = torch.tensor(tokenizer(prompt, add_special_tokens=False)["input_ids"], dtype=torch.int64)
        inputs = torch.cat((row, model.llm.get_input_embeddings()(ids)))[None]
        mask = torch.ones(inputs.shape[:2], dtype=torch.int64)
        options = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 1, "eos_token_id": 1, "pad_token_id": 1}
        out = model.llm.generate(inputs_embeds=inputs, attention_mask=mask, **options)
        texts.append(tokenizer.decode(out[0], skip_special_tokens=True))
    return ["".join(text.split()) for text in texts]


def test_answers_equal_pytorch(made: tuple[Path, Any, blip2rt.Model]) -> None:
    _, reference, model = made
    images = tiny_blip2.photographs(3, np.random.default_rng(SEED))
    pixels = to_pixels(images, model.bundle.manifest.image)
    read = ["the what is red?", "the is the man in the snow with a dog and two cats", "the a dog"]
    want = prefix(reference, pixels, read)
    got = model.pipeline.prefix_embeds(
        model.pipeline.prepare_each(images), [model.pipeline.qformer_question(question) for question in QUESTIONS]
    )
    assert np.abs(got - want.numpy()).max() < 1e-4
    other = prefix(reference, pixels, ["the blue"] * 3)
    assert (other - want).abs().max() > 1e-2, "the question changes nothing: this tests nothing"
    answers = model.ask(images, QUESTIONS, num_beams=1, max_new_tokens=8)
    texts = said(reference, want, [f"Question: {question} Answer:" for question in QUESTIONS])
    assert ["".join(answer.split()) for answer in answers] == texts
    assert model.ask(images[0], QUESTIONS, num_beams=1, max_new_tokens=8)[0] == answers[0]
    pieces = model.stream(images[1], question=QUESTIONS[1], num_beams=1, max_new_tokens=8)
    assert "".join(pieces) == answers[1]


def test_captions_use_their_prompt(made: tuple[Path, Any, blip2rt.Model]) -> None:
    _, reference, model = made
    [image] = tiny_blip2.photographs(1, np.random.default_rng(SEED))
    pixels = to_pixels([image], model.bundle.manifest.image)
    for prompt in (None, "a dog"):
        [want] = said(reference, prefix(reference, pixels, [prompt or ""]), [prompt or ""])
        assert "".join(model.caption(image, prompt=prompt, num_beams=1, max_new_tokens=8).split()) == want


def test_unsupported_uses_are_one_line_errors(made: tuple[Path, Any, blip2rt.Model], tmp_path: Path) -> None:
    folder, _, model = made
    with pytest.raises(CapabilityError, match="cannot chat: its Q-Former reads the question together"):
        model.chat(tiny_blip2.photographs(1, np.random.default_rng(new_seed()))[0])
    with pytest.raises(Blip2rtError, match="question_input"):
        convert.convert(Checkpoint(folder / "ckpt"), "hf", tmp_path / "hf", "float32")
    manifest = folder / "bundle" / "blip2rt.json"
    text = manifest.read_text()
    try:
        manifest.write_text(json.dumps(json.loads(text) | {"question": None}))
        with pytest.raises(BundleError, match="qformer reads token_ids but question is null"):
            blip2rt.load(folder / "bundle")
        damaged = json.loads(text)
        del damaged["components"]["qformer"]["inputs"][1:]
        manifest.write_text(json.dumps(damaged))
        with pytest.raises(BundleError, match="qformer lacks the inputs token_ids, text_mask"):
            blip2rt.load(folder / "bundle")
    finally:
        manifest.write_text(text)
