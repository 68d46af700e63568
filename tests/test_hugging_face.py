"""Hugging Face's BLIP-2 -> bundle -> runtime: the same pixels, prompts, features, tokens and scores.

Random tiny models, saved by transformers; BLIP2RT_SEED draws others.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("onnxscript")
pytest.importorskip("blip2rt._native")

import blip2rt
from blip2rt.errors import CapabilityError
from blip2rt.image import to_pixels
from blip2rt.modeling import checkpoints, streaming
from export.cli import main
from tests import tiny_blip2

SEED = int(os.environ.get("BLIP2RT_SEED", "7"))  # near ties of random models differ by rounding: fixed, others by hand
FLOAT = "vision=fp32,qformer=fp32,llm=fp32,retrieval=fp32"
PROMPTS = ["a photo of", "Question: what colour is the dog? Answer:", "the", "two dog"]


@dataclass
class Pair:
    """A checkpoint in Hugging Face's hands and in ours."""

    folder: Path
    reference: Any
    processor: Any
    model: blip2rt.Model
    images: list[Any]

    def tokens(self, prompts: list[str | None], num_beams: int) -> list[list[int]]:
        """What our runtime generates for images and prompts, without the end."""
        ids = [self.model._language.encode(prompt or "") for prompt in prompts]
        features = self.model.vision_features(self.images[: len(prompts)])
        options = {"num_beams": num_beams, "max_new_tokens": 9, "min_new_tokens": 1, "num_return_sequences": 1,
                   "length_penalty": 1.0, "early_stopping": "false",
                   "eos_token_ids": list(self.model.bundle.manifest.llm.eos_token_ids)}  # fmt: skip
        prefix = self.model._backend.prefix_embeds(features)
        return [best[0][0] for best in self.model._backend.generate(prefix, ids, options)]

    @torch.no_grad()
    def wanted(self, prompts: list[str | None], num_beams: int) -> list[list[int]]:
        """The same from transformers' generate, as one padded batch."""
        images = self.images[: len(prompts)]
        if prompts[0] is None:
            inputs = dict(self.processor(images=images, return_tensors="pt"))
        else:
            inputs = dict(self.processor(images=images, text=prompts, padding=True, return_tensors="pt"))
        output = self.reference.generate(
            **inputs, num_beams=num_beams, do_sample=False, max_new_tokens=9, min_new_tokens=1
        )
        given = inputs.get("input_ids")
        queries = self.reference.config.num_query_tokens
        start = queries + 1 if given is None else given.shape[1]
        encoder_decoder = self.reference.language_model.config.is_encoder_decoder
        if encoder_decoder:
            start = 1
        elif output.shape[1] <= start or (output[:, :queries] != tiny_blip2.IMAGE).all():
            start = 0  # some releases leave the prompt out
        ends = self.model.bundle.manifest.llm.eos_token_ids
        rows = output[:, start:].tolist()
        return [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in rows]


@pytest.fixture(scope="module", params=sorted(tiny_blip2.TEXT_CONFIGS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make(request.param, tmp_path_factory.mktemp(request.param), **SAVING.get(request.param, {}))


SAVING: dict[str, Any] = {"opt": {"max_shard_size": "60KB"}, "llama": {"dtype": torch.float16}}


def make(name: str, folder: Path, **saving: Any) -> Pair:
    print(f"seed {SEED}")
    torch.manual_seed(SEED)
    checkpoint = tiny_blip2.generative(folder / "hf", tiny_blip2.TEXT_CONFIGS[name](), **saving)
    assert (checkpoint / "model.safetensors.index.json").exists() == ("max_shard_size" in saving)
    assert main(["--ckpt", str(checkpoint), "--out", str(folder / "bundle"), "--precision", FLOAT]) == 0
    reference = transformers.Blip2ForConditionalGeneration.from_pretrained(checkpoint).float().eval()
    processor = transformers.AutoProcessor.from_pretrained(checkpoint)
    processor.tokenizer.padding_side = "left"
    images = tiny_blip2.photographs(4, np.random.default_rng(SEED))
    return Pair(checkpoint, reference, processor, blip2rt.load(folder / "bundle", threads=1), images)


@torch.no_grad()
def test_features_and_logits(pair: Pair) -> None:
    pixels = torch.from_numpy(to_pixels(pair.images, pair.model.bundle.manifest.image))
    seen = pair.reference.vision_model(pixels).last_hidden_state
    queries = pair.reference.query_tokens.expand(len(pixels), -1, -1)
    query_output = pair.reference.qformer(query_embeds=queries, encoder_hidden_states=seen)[0]
    prefix = pair.reference.language_projection(query_output)
    ours = pair.model._backend.prefix_embeds(pair.model.vision_features(pair.images))
    assert np.abs(ours - prefix.numpy()).max() < 1e-4
    model = checkpoints.load_model(pair.folder)
    assert (model.vision_norm(model.vision_features(pixels)) - seen).abs().max() < 1e-4
    assert (model.query_output(model.vision_features(pixels)) - query_output).abs().max() < 1e-4


@pytest.mark.parametrize("num_beams", [1, 5])
def test_tokens_equal_generate(pair: Pair, num_beams: int) -> None:
    """Captions, and a batch of unequal prompts: prompted captions and questions."""
    for prompts in ([None] * 3, PROMPTS):
        assert pair.tokens(prompts, num_beams) == pair.wanted(prompts, num_beams), f"seed {SEED}, {prompts}"


def test_prompt_tokens_equal_the_processor(pair: Pair) -> None:
    for prompt in PROMPTS:
        want = pair.processor(images=pair.images[0], text=prompt)["input_ids"]
        want = np.array(want).reshape(-1).tolist()[tiny_blip2.QUERIES :]
        assert pair.model._language.encode(prompt) == want


def test_pixels_equal_the_processor(tmp_path: Path) -> None:
    """Pillow's backend; images of all sizes."""
    processor = getattr(transformers, "BlipImageProcessorPil", transformers.BlipImageProcessor)
    size = {"height": 56, "width": 56}
    spec = blip2rt.bundle.ImageSpec(
        56, 56, "bicubic", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    )
    images = tiny_blip2.photographs(6, np.random.default_rng(SEED))
    want = processor(size=size)(images, return_tensors="np")["pixel_values"]
    assert np.abs(to_pixels(images, spec) - want).max() < 1e-6


@torch.no_grad()
def test_retrieval_scores(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    torch.manual_seed(SEED)
    checkpoint = tiny_blip2.retrieval(tmp_path / "hf")
    assert main(["--ckpt", str(checkpoint), "--out", str(tmp_path / "bundle"), "--precision", FLOAT]) == 0
    model = blip2rt.load(tmp_path / "bundle", threads=1)
    reference = transformers.Blip2ForImageTextRetrieval.from_pretrained(checkpoint).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    images = tiny_blip2.photographs(3, np.random.default_rng(SEED))
    texts = ["a dog runs", "the woman sits on the red grass with two cats and a ball and the man is in the snow", "xyz"]
    pixels = torch.from_numpy(to_pixels(images, model.bundle.manifest.image))
    tokens = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    itm = reference(pixel_values=pixels, **tokens, use_image_text_matching_head=True).logits_per_image.softmax(-1)
    itc = reference(pixel_values=pixels, **tokens, use_image_text_matching_head=False).logits_per_image
    for index, match in enumerate(model.match(images, texts)):
        assert match.probability == pytest.approx(float(itm[index, 1]), abs=1e-4)
        assert match.cosine == pytest.approx(float(itc[index, index]), abs=1e-4)


@torch.no_grad()
def test_streamed_weights_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a model too large for the memory: nearly every weight stays on disk until it is used."""
    print(f"seed {SEED}")
    torch.manual_seed(SEED)
    monkeypatch.setattr(streaming, "SMALL", 200)
    checkpoint = tiny_blip2.generative(tmp_path / "hf", tiny_blip2.TEXT_CONFIGS["opt"](), dtype=torch.bfloat16)
    model = checkpoints.load_model(checkpoint, streamed=True)
    assert sum(map(streaming.is_bound, model.parameters())) > 50
    precision = "vision=int8,qformer=int8w,llm=int4"
    assert main(["--ckpt", str(checkpoint), "--out", str(tmp_path / "bundle"), "--precision", precision]) == 0
    bundle = blip2rt.load(tmp_path / "bundle", threads=1)
    checks = {check.component: check for check in bundle.bundle.manifest.verification}
    assert checks["vision"].precision == "int8-dynamic" and checks["vision"].cosine > 0.99
    assert checks["llm"].agreement > 0.3
    assert isinstance(bundle.caption(tiny_blip2.photographs(1, np.random.default_rng())[0]), str)


@torch.no_grad()
def test_larger_images_interpolate_positions(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    torch.manual_seed(SEED)
    checkpoint = tiny_blip2.generative(tmp_path / "hf", tiny_blip2.TEXT_CONFIGS["llama"]())
    reference = transformers.Blip2ForConditionalGeneration.from_pretrained(checkpoint).eval()
    arguments = ["--ckpt", str(checkpoint), "--out", str(tmp_path / "bundle"), "--image-size", "49", "--no-verify"]
    assert main([*arguments, "--precision", FLOAT]) == 0
    model = blip2rt.load(tmp_path / "bundle", threads=1)
    images = tiny_blip2.photographs(2, np.random.default_rng(SEED))
    pixels = torch.from_numpy(to_pixels(images, model.bundle.manifest.image))
    assert pixels.shape[2:] == (49, 49)
    seen = reference.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state
    ours = checkpoints.load_model(checkpoint).vision_norm(torch.from_numpy(model.vision_features(images)))
    assert (ours - seen).abs().max() < 1e-4


@torch.no_grad()
def test_flan_t5_tokens_equal_generate(tmp_path: Path) -> None:
    """Encoder-decoder: the bundle's graphs stepped by onnxruntime and by our loop, against generate's greedy search."""
    from export.verify import STEPS, LlmGraphs

    print(f"seed {SEED}")
    torch.manual_seed(SEED)
    text = transformers.T5Config(
        vocab_size=tiny_blip2.VOCAB, d_model=48, d_kv=12, d_ff=80, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0, bos_token_id=1,
        eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    checkpoint = tiny_blip2.generative(tmp_path / "hf", text)
    arguments = ["--ckpt", str(checkpoint), "--out", str(tmp_path / "bundle"), "--precision", FLOAT]
    assert main(arguments) == 0
    reference = transformers.Blip2ForConditionalGeneration.from_pretrained(checkpoint).eval()
    processor = transformers.AutoProcessor.from_pretrained(checkpoint)
    model = blip2rt.load(tmp_path / "bundle", threads=1)
    spec = model.bundle.manifest.llm
    assert spec.encoder_decoder and spec.decoder_start_token_id == 0
    images = tiny_blip2.photographs(4, np.random.default_rng(SEED))
    prefix = model._backend.prefix_embeds(model.vision_features(images))
    table = reference.get_input_embeddings()
    for prompts in (None, PROMPTS):
        ids = [model._language.encode(prompt) for prompt in prompts or [""] * 4]
        rows = [np.concatenate((prefix[b], table(torch.tensor(row)).numpy())) for b, row in enumerate(ids)]
        folder = tmp_path / "bundle"
        graphs = LlmGraphs(folder / "llm.onnx", folder / "embed.onnx", folder / "encoder.onnx", 0)
        got = graphs.run(rows)[0].tolist()
        inputs = processor(images=images, text=prompts, padding=True, return_tensors="pt")
        want = reference.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=STEPS).tolist()
        ends = [[*row, 1].index(1) for row in got]
        wanted = [[*row[1:], 1][: [*row[1:], 1].index(1)] for row in want]
        assert [row[:end] for row, end in zip(got, ends, strict=True)] == wanted
        options = {"max_new_tokens": STEPS, "eos_token_ids": [1]}
        assert [best[0][0] for best in model._backend.generate(prefix, ids, options)] == wanted
    for beams in (1, 3):
        said = model.ask(images[0], "what is red", num_beams=beams, max_new_tokens=5)
        assert isinstance(said, str)
    with pytest.raises(CapabilityError, match="encoder-decoder"):
        model.chat(images[0])
