"""Gemma 3 with bidirectional prompts: Hugging Face folder -> bundle -> runtime, compared with generate."""

from __future__ import annotations

import json
import random
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import blip2rt
from blip2rt.batching import Batching
from blip2rt.errors import BackendError, OptionError
from blip2rt.options import Options, merge
from blip2rt.requests import Request
from blip2rt_export import targets
from blip2rt_export.checks import verify
from blip2rt_export.language import trace_graphs
from tests.export.commands_in_process import export
from tests.seeds import new_seed, seed_of
from tests.tiny import blip2 as tiny_blip2
from tests.tiny import onnx_validity
from tests.tiny.language_models import build, write
from tests.tiny.logit_noise import is_tie

pytestmark = pytest.mark.long(60, "graphs with bidirectional prompts, traced and run")

SEED = seed_of(__name__)
NAME = "gemma3_both_ways"
PROMPTS = ["a photo of", "Question: what colour is the dog? Answer:", "the", "two dog"]
STEPS = 8
ROUNDING = 1e-4  # of a logit in float32
EXACT = 5e-6  # of the largest logit


@dataclass
class Pair:
    """A checkpoint in transformers and in our runtime."""

    bundle: Path
    language: Any  # transformers' model
    model: blip2rt.Model
    images: list[Any]
    prefix: np.ndarray  # (4, Q, D)

    def ids(self, prompt: str) -> list[int]:
        return self.model.pipeline.language.encode(self.model.pipeline.language.caption_prompt(prompt))

    @torch.no_grad()
    def wanted(self, image: int, ids: list[int], **options: Any) -> list[int]:
        """Return the new tokens of transformers' generate, which reads [prefix | ids] as one prompt; no end token."""
        table = self.language.get_input_embeddings()
        embeds = torch.cat((torch.from_numpy(self.prefix[image]), table(torch.tensor(ids, dtype=torch.int64))))[None]
        options = {"do_sample": False, "min_new_tokens": 1, "max_new_tokens": STEPS, **options}
        inputs = {"inputs_embeds": embeds, "attention_mask": torch.ones(embeds.shape[:2])}
        tokens = self.language.generate(**inputs, eos_token_id=1, pad_token_id=0, **options)[0].tolist()
        return tokens[: tokens.index(1)] if 1 in tokens else tokens

    def check(self, got: list[int], image: int, ids: list[int], **options: Any) -> None:
        want = self.wanted(image, ids, **options)
        same = got == want or is_tie(
            lambda noise: self.wanted(image, ids, logits_processor=noise, **options), want, ROUNDING
        )
        assert same, f"image {image}, {ids}, {options}: {got} is not {want}"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp(NAME)
    torch.manual_seed(SEED)
    checkpoint = tiny_blip2.generative(folder / "hf", tiny_blip2.NEWER_TEXT_CONFIGS[NAME]())
    export(checkpoint, folder / "bundle")
    reference = transformers.Blip2ForConditionalGeneration.from_pretrained(checkpoint).float().eval()
    reference.language_model.generation_config = transformers.GenerationConfig()
    model = blip2rt.load(folder / "bundle", threads=1)
    images = tiny_blip2.photographs(4, np.random.default_rng(SEED))
    prefix = model.pipeline.backend.prefix_embeds(model.vision_features(images))
    return Pair(folder / "bundle", reference.language_model, model, images, prefix)


def test_graphs_equal_transformers(tmp_path: Path) -> None:
    """Rows of different length, with hidden padding; windows narrower and wider than the rows."""
    model = build(NAME, SEED)
    assert model.config.sliding_window == 6
    graphs = write(trace_graphs(targets.ORT, model, 64), tmp_path, targets.ORT)
    for seed in range(3):
        rng = np.random.default_rng(SEED + seed)
        rows = [rng.normal(size=(length, model.config.hidden_size)).astype(np.float32) for length in (3, 14, 7, 1)]
        tokens, got = graphs.run(rows)
        want = verify.llm_logits(model, rows, tokens, None)
        assert np.abs(got - want).max() < EXACT * np.abs(want).max()
        model.config.use_bidirectional_attention = False
        other = verify.llm_logits(model, rows, tokens, None)
        model.config.use_bidirectional_attention = True
        assert np.abs(got - other).max() > 100 * EXACT * np.abs(want).max(), "causal masks give other logits"


def test_manifest_declares_bidirectional_prompts(pair: Pair) -> None:
    assert not onnx_validity.faults(pair.bundle)
    assert json.loads((pair.bundle / "blip2rt.json").read_text())["llm"]["bidirectional_prompt"] is True


@pytest.mark.parametrize("num_beams", [1, 4])
def test_texts_match_generate(pair: Pair, num_beams: int) -> None:
    """A batch of prompts of different length; forced tokens are read with the prompt."""
    for forced in ("", "a dog"):
        options = Options(num_beams=num_beams, max_new_tokens=STEPS, min_new_tokens=1, forced_prefix=forced)
        prompts = [pair.model.pipeline.language.caption_prompt(text) for text in PROMPTS]
        settings = pair.model.pipeline.language.settings("caption", merge(options, {}), prompts)
        ids = [pair.ids(text) for text in PROMPTS]
        texts = pair.model.pipeline.backend.generate(pair.prefix, ids, settings)
        for image, text in enumerate(texts):
            pair.check(text[0][0], image, ids[image] + settings.forced_prefix, num_beams=num_beams)


@pytest.mark.parametrize("shared", [False, True])
def test_chat_matches_generate_on_the_whole_conversation(pair: Pair, shared: bool) -> None:
    """New text changes the states of all earlier positions."""
    model = blip2rt.load(pair.bundle, threads=1, batching=Batching(rows=4)) if shared else pair.model
    rng = random.Random(new_seed())
    for num_beams in (1, 3):
        chat = model.pipeline.backend.chat(pair.prefix[:1], num_beams, 90)
        said: list[int] = []
        for _ in range(3):
            question = [rng.randrange(4, 24) for _ in range(rng.randint(1, 6))]
            settings = model.pipeline.language.settings(
                "ask",
                merge(Options(num_beams=num_beams, max_new_tokens=5, min_new_tokens=1, forced_prefix="the"), {}),
                [],
            )
            generation = chat.ask(question, settings)
            while not generation.done:
                generation.step()
            answer = generation.results()[0][0][0]
            said += question + settings.forced_prefix
            pair.check(answer, 0, said, num_beams=num_beams, max_new_tokens=5)
            said += answer


def test_concurrent_calls_match_generate(pair: Pair) -> None:
    """Each prompt is read as a whole, and not cached for others."""
    model = blip2rt.load(pair.bundle, threads=1, batching=Batching(rows=5, read=40), cache_bytes=1 << 20)
    asked = [(image, text, beams) for image in range(4) for text in PROMPTS for beams in (1, 3)] * 2
    got: dict[int, list[int]] = {}

    def work(first: int) -> None:
        for i in range(first, len(asked), 4):
            image, text, beams = asked[i]
            options = Options(num_beams=beams, max_new_tokens=STEPS, min_new_tokens=1)
            settings = model.pipeline.language.settings(
                "caption", merge(options, {}), [model.pipeline.language.caption_prompt(text)]
            )
            said = model.pipeline.backend.generate(pair.prefix[image : image + 1], [pair.ids(text)], settings)
            got[i] = said[0][0][0]

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, (image, text, beams) in enumerate(asked):
        pair.check(got[i], image, pair.ids(text), num_beams=beams)
    assert model.counters()["kept_positions"] == 0


def test_prompt_longer_than_a_step_runs_alone(pair: Pair) -> None:
    model = blip2rt.load(pair.bundle, threads=1, batching=Batching(rows=4, read=7))
    options: Any = {"num_beams": 1, "max_new_tokens": STEPS}
    prompt = PROMPTS[1]
    want = pair.model.caption(pair.images[0], prompt=prompt, **options)
    assert model.caption(pair.images[0], prompt=prompt, **options) == want
    with pytest.raises(OptionError, match="reads at once, and a step reads 7: ask for less"):
        model.submit(Request(pair.images[0], prompt=prompt, options=Options(**options)))


def test_likelihoods_are_rejected(pair: Pair) -> None:
    """They would be read as rows of one position each."""
    with pytest.raises(BackendError, match="see each other, and cannot be rows of their own"):
        pair.model.pipeline.backend.likelihoods(pair.prefix[:1], [[5, 6]], [0], [[7]])
