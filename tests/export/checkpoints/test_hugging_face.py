"""Hugging Face's BLIP-2 -> bundle -> runtime: equal pixels, prompts, features, logits, tokens and scores.

Random tiny models, saved by transformers, new ones in every run; BLIP2RT_TEST_SEED draws those of another run.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import blip2rt
from blip2rt_export.checks.llm import STEPS, LlmGraphs
from tests.export.commands_in_process import export
from tests.seeds import seed_of
from tests.tiny import blip2 as tiny_blip2
from tests.tiny import onnx_validity
from tests.tiny.logit_noise import is_tie

pytestmark = pytest.mark.long(45, "whole exports, compared with transformers token for token")

SEED = seed_of(__name__)
PROMPTS = ["a photo of", "Question: what colour is the dog? Answer:", "the", "two dog"]
ROUNDING = 1e-4  # of a logit in float32; transformers itself differs from float64 by up to 3e-5


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
        return self.model.caption_prefix(self.model.vision_features(self.images[:count]))

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


@pytest.fixture(scope="module", params=["opt", "llama", "t5"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make(request.param, tmp_path_factory.mktemp(request.param), **SAVING.get(request.param, {}))


SAVING: dict[str, Any] = {"opt": {"max_shard_size": "60KB"}, "llama": {"dtype": torch.float16}}


def make(name: str, folder: Path, **saving: Any) -> Pair:
    torch.manual_seed(SEED)
    text = tiny_blip2.TEXT_CONFIGS[name]()
    checkpoint = tiny_blip2.generative(folder / "hf", text, **saving)
    assert (checkpoint / "model.safetensors.index.json").exists() == ("max_shard_size" in saving)
    export(checkpoint, folder / "bundle")
    reference = transformers.Blip2ForConditionalGeneration.from_pretrained(checkpoint).float().eval()
    processor = transformers.AutoProcessor.from_pretrained(checkpoint)
    if not text.is_encoder_decoder:  # in an encoder, padding between image and text changes distances
        processor.tokenizer.padding_side = "left"
    processor.image_processor = tiny_blip2.PILLOW.from_pretrained(checkpoint)
    images = tiny_blip2.photographs(4, np.random.default_rng(SEED))
    model = blip2rt.load(folder / "bundle", threads=1)
    return Pair(checkpoint, folder / "bundle", reference, processor, model, images)


def test_graphs_are_valid_onnx(pair: Pair) -> None:
    assert not onnx_validity.faults(pair.bundle)


CASES = ([None] * 3, PROMPTS)  # captions; prompts and questions of different length


def test_logits_match_generate(pair: Pair) -> None:
    """At every step, from photographs to the language model's logits."""
    for prompts in CASES:
        rows, want = pair.generate(prompts, num_beams=1, min_new_tokens=STEPS)
        got = pair.logits(prompts, np.array(rows))
        assert np.abs(got - want.swapaxes(0, 1)).max() < 1e-5 * np.abs(want).max(), f"{prompts}"


@pytest.mark.parametrize("num_beams", [1, 5])
def test_tokens_match_generate(pair: Pair, num_beams: int) -> None:
    for prompts in CASES:
        ours, theirs = pair.tokens(prompts, num_beams), pair.wanted(prompts, num_beams)
        for row, (got, want) in enumerate(zip(ours, theirs, strict=True)):
            same = got == want or pair.undecided(prompts, num_beams, row, want)
            assert same, f"{num_beams} beams, {prompts[row]!r}: {got} is not {want}"


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
