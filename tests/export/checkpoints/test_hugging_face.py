"""Hugging Face's BLIP-2 -> bundle -> runtime: equal pixels, prompts, features, logits, tokens and scores.

Random tiny models, saved by transformers, new ones in every run; BLIP2RT_TEST_SEED draws those of another run.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import blip2rt
from blip2rt.errors import CapabilityError
from blip2rt.image import to_pixels
from blip2rt.language import Prompt
from blip2rt.modeling.checkpoint import Checkpoint
from blip2rt.options import Options, merge
from blip2rt_export.checks import greedy
from blip2rt_export.checks.verify import STEPS, LlmGraphs
from tests.export.commands_in_process import export
from tests.seeds import new_seed, seed_of
from tests.tiny import blip2 as tiny_blip2
from tests.tiny import onnx_validity
from tests.tiny.logit_noise import is_tie

pytestmark = pytest.mark.long(80, "whole exports, compared with transformers token for token")

SEED = seed_of(__name__)
PROMPTS = ["a photo of", "Question: what colour is the dog? Answer:", "the", "two dog"]
ROUNDING = 1e-4  # of a logit in float32; transformers itself differs from float64 by up to 3e-5
# transformers resizes with torchvision by default, which differs from Pillow by a level of 255 here and there
PILLOW: Any = getattr(transformers, "BlipImageProcessorPil", transformers.BlipImageProcessor)


@dataclass
class Pair:
    """A checkpoint in transformers and in our runtime."""

    folder: Path
    bundle: Path
    reference: Any
    processor: Any
    model: blip2rt.Model
    images: list[Any]

    def prefix(self, count: int) -> np.ndarray:
        return self.model.pipeline.backend.prefix_embeds(self.model.vision_features(self.images[:count]))

    def ids(self, prompts: list[str | None]) -> list[list[int]]:
        return [self.model.pipeline.language.encode(prompt or "") for prompt in prompts]

    @property
    def ends(self) -> tuple[int, ...]:
        return self.model.bundle.manifest.llm.eos_token_ids

    def tokens(self, prompts: list[str | None], num_beams: int) -> list[list[int]]:
        """Generate with our runtime; returns tokens without the end token."""
        options = {"num_beams": num_beams, "max_new_tokens": STEPS, "min_new_tokens": 1, "num_return_sequences": 1}
        options |= {"length_penalty": 1.0, "early_stopping": "false", "eos_token_ids": list(self.ends)}
        texts = self.model.pipeline.backend.generate(self.prefix(len(prompts)), self.ids(prompts), options)
        return [best[0][0] for best in texts]

    @torch.no_grad()
    def generate(self, prompts: list[str | None], **options: Any) -> tuple[list[list[int]], np.ndarray]:
        """Generate one padded batch in transformers; return each row's new tokens, logits (steps, B or beams, V)."""
        given = {} if prompts[0] is None else {"text": prompts, "padding": True}
        inputs = dict(self.processor(images=self.images[: len(prompts)], return_tensors="pt", **given))
        options |= {"do_sample": False, "max_new_tokens": STEPS}
        output = self.reference.generate(**inputs, **options, output_logits=True, return_dict_in_generate=True)
        rows, queries = output.sequences, self.reference.config.num_query_tokens
        start = inputs["input_ids"].shape[1] if "input_ids" in inputs else queries + 1
        if self.reference.language_model.config.is_encoder_decoder:
            start = 1
        elif rows.shape[1] <= start or (rows[:, :queries] != tiny_blip2.IMAGE).all():
            start = 0  # some releases omit the prompt
        return rows[:, start:].tolist(), torch.stack(output.logits).numpy()

    def wanted(self, prompts: list[str | None], num_beams: int, **options: Any) -> list[list[int]]:
        """Do the same with transformers."""
        rows, _ = self.generate(prompts, num_beams=num_beams, min_new_tokens=1, **options)
        return [row[: next((i for i, token in enumerate(row) if token in self.ends), len(row))] for row in rows]

    @property
    def graphs(self) -> LlmGraphs:
        spec = self.model.bundle.manifest.llm
        encoder = self.bundle / "encoder.onnx" if spec.encoder_decoder else None
        return LlmGraphs(self.bundle / "llm.onnx", self.bundle / "embed.onnx", encoder, spec.decoder_start_token_id)

    def logits(self, prompts: list[str | None], tokens: np.ndarray) -> np.ndarray:
        """Return our graphs' logits (B,STEPS,V), from our pixels, before each of tokens (B,STEPS)."""
        table = self.reference.get_input_embeddings()
        pairs = zip(self.prefix(len(prompts)), self.ids(prompts), strict=True)
        rows = [np.concatenate((prefix, table(torch.tensor(ids)).detach().numpy())) for prefix, ids in pairs]
        return self.graphs.run(rows, tokens)[1]

    def undecided(self, prompts: list[str | None], num_beams: int, row: int, want: list[int], **options: Any) -> bool:
        """Whether rounding its logits differently changes what transformers itself generates."""
        return is_tie(
            lambda noise: self.wanted(prompts, num_beams, logits_processor=noise, **options)[row], want, ROUNDING
        )


@pytest.fixture(scope="module", params=sorted(tiny_blip2.TEXT_CONFIGS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make(request.param, tmp_path_factory.mktemp(request.param), **SAVING.get(request.param, {}))


SAVING: dict[str, Any] = {"opt": {"max_shard_size": "60KB"}, "llama": {"dtype": torch.float16}}


def make(name: str, folder: Path, **saving: Any) -> Pair:
    torch.manual_seed(SEED)
    text = (tiny_blip2.TEXT_CONFIGS | tiny_blip2.NEWER_TEXT_CONFIGS)[name]()
    checkpoint = tiny_blip2.generative(folder / "hf", text, **saving)
    assert (checkpoint / "model.safetensors.index.json").exists() == ("max_shard_size" in saving)
    export(checkpoint, folder / "bundle")
    reference = transformers.Blip2ForConditionalGeneration.from_pretrained(checkpoint).float().eval()
    processor = transformers.AutoProcessor.from_pretrained(checkpoint)
    if not text.is_encoder_decoder:  # in an encoder, padding between image and text changes distances
        processor.tokenizer.padding_side = "left"
    processor.image_processor = PILLOW.from_pretrained(checkpoint)
    images = tiny_blip2.photographs(4, np.random.default_rng(SEED))
    model = blip2rt.load(folder / "bundle", threads=1)
    return Pair(checkpoint, folder / "bundle", reference, processor, model, images)


def test_graphs_are_valid_onnx(pair: Pair) -> None:
    assert not onnx_validity.faults(pair.bundle)


@torch.no_grad()
def test_features_match_hugging_face(pair: Pair) -> None:
    pixels = torch.from_numpy(to_pixels(pair.images, pair.model.bundle.manifest.image))
    seen = pair.reference.vision_model(pixels).last_hidden_state
    queries = pair.reference.query_tokens.expand(len(pixels), -1, -1)
    query_output = pair.reference.qformer(query_embeds=queries, encoder_hidden_states=seen)[0]
    prefix = pair.reference.language_projection(query_output)
    assert np.abs(pair.prefix(4) - prefix.numpy()).max() < 1e-4
    model = Checkpoint(pair.folder).load()
    assert (model.vision_norm(model.vision_features(pixels)) - seen).abs().max() < 1e-4
    assert (model.query_output(model.vision_features(pixels)) - query_output).abs().max() < 1e-4


CASES = ([None] * 3, PROMPTS)  # captions; prompts and questions of different length


def test_logits_match_generate(pair: Pair) -> None:
    """At every step, from photographs to the language model's logits."""
    for prompts in CASES:
        check_logits(pair, prompts)


def check_logits(pair: Pair, prompts: list[str | None]) -> None:
    rows, want = pair.generate(prompts, num_beams=1, min_new_tokens=STEPS)
    got = pair.logits(prompts, np.array(rows))
    assert np.abs(got - want.swapaxes(0, 1)).max() < 1e-5 * np.abs(want).max(), f"{prompts}"


@pytest.mark.parametrize("num_beams", [1, 5])
def test_tokens_match_generate(pair: Pair, num_beams: int) -> None:
    for prompts in CASES:
        check_tokens(pair, prompts, num_beams)


def check_tokens(pair: Pair, prompts: list[str | None], num_beams: int) -> None:
    ours, theirs = pair.tokens(prompts, num_beams), pair.wanted(prompts, num_beams)
    for row, (got, want) in enumerate(zip(ours, theirs, strict=True)):
        same = got == want or pair.undecided(prompts, num_beams, row, want)
        assert same, f"{num_beams} beams, {prompts[row]!r}: {got} is not {want}"


def test_verification_takes_the_tokens_of_the_core(pair: Pair) -> None:
    """Greedy ones and those after random texts, whatever the prompts' lengths."""
    spec = pair.model.bundle.manifest.llm
    core = greedy.CoreTokens(pair.graphs, spec, pair.prefix(4), pair.ids(PROMPTS))
    text = greedy.random_text(spec.vocab_size)
    own, after = core.texts(), core.after(text)
    of_text = pair.logits(PROMPTS, np.tile(text, (4, 1)))[:, greedy.FORCED]
    for tokens, logits in ((own, pair.logits(PROMPTS, own)), (after, of_text)):
        chosen = np.take_along_axis(logits, tokens[..., None], -1)[..., 0]
        assert chosen.shape[0] == 4 and (logits.max(-1) - chosen).max() < 1e-3
    checks = {check.component: check for check in pair.model.bundle.manifest.verification}
    assert checks["llm"].agreement > 0.95 and checks["all"].agreement > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(tiny_blip2.NEWER_TEXT_CONFIGS))
def test_newer_models_match_generate(name: str, tmp_path: Path) -> None:
    """Soft caps, windows, normed queries and keys, linear biases, tensors of older names.

    One image at a time: in transformers' padded batches the padding takes room in a sliding window.
    """
    pair = make(name, tmp_path)
    for prompt in (None, *PROMPTS[:2]):
        check_logits(pair, [prompt])
        for num_beams in (1, 5):
            check_tokens(pair, [prompt], num_beams)


RULES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.7},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"repetition_penalty": 0.6, "no_repeat_ngram_size": 3},
]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_repetition_rules_match_generate(pair: Pair, num_beams: int) -> None:
    """Image, prompt and answer of a decoder-only model; the answer alone where an encoder reads the others.

    One image at a time: transformers counts the padding between image and prompt, too.
    """
    language, changed, draw = pair.model.pipeline.language, 0, random.Random(new_seed())
    drawn = (" ".join(draw.choices(tiny_blip2.WORDS, k=draw.randint(1, 8))) for _ in range(20))
    for number, prompt in enumerate((None, "a dog a dog a dog", *PROMPTS[:2], *drawn)):
        if number >= 4 and changed > 4:  # a model that rarely repeats itself gets more prompts
            break
        plain = pair.wanted([prompt], num_beams)[0]
        for rule in RULES:
            said = Prompt(text=prompt or "")
            options = Options(num_beams=num_beams, max_new_tokens=STEPS, min_new_tokens=1, length_penalty=1.0, **rule)
            settings = language.settings("caption", merge(options, {}), [said])
            [[(got, _), *_]] = pair.model.pipeline.backend.generate(pair.prefix(1), [language.encode(said)], settings)
            want = pair.wanted([prompt], num_beams, **rule)[0]
            changed += want != plain
            same = got == want or pair.undecided([prompt], num_beams, 0, want, **rule)
            assert same, f"{rule}, {prompt!r}: {got} is not {want}"
    assert changed > 4


def test_answers_are_decoded_like_the_tokenizer(pair: Pair) -> None:
    image, question = pair.images[0], "what is red"
    prompt = pair.model.bundle.manifest.prompts["ask"].replace("{}", question)
    tokens = pair.tokens([prompt], 1)[0]
    want = pair.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    options: Any = {"num_beams": 1, "max_new_tokens": STEPS, "min_new_tokens": 1}
    assert pair.model.ask(image, question, **options) == want
    assert "".join(pair.model.stream(image, question=question, **options)) == want
    assert pair.model.caption(image, prompt=prompt, raw=True, **options) == want


def test_prompt_tokens_equal_the_processor(pair: Pair) -> None:
    for prompt in PROMPTS:
        want = pair.processor(images=pair.images[0], text=prompt)["input_ids"]
        want = np.array(want).reshape(-1).tolist()[tiny_blip2.QUERIES :]
        assert pair.model.pipeline.language.encode(prompt) == want


@pytest.mark.parametrize("pair", ["t5"], indirect=True)
def test_encoder_decoder_answers_but_cannot_chat(pair: Pair) -> None:
    assert isinstance(pair.model.ask(pair.images[0], "what is red", num_beams=3, max_new_tokens=5), str)
    with pytest.raises(CapabilityError, match="encoder-decoder"):
        pair.model.chat(pair.images[0])
