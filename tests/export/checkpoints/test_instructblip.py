"""Q-Formers that read the question: InstructBLIP (Hugging Face, LAVIS' Vicuna), and our own checkpoints."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import blip2rt
from blip2rt.errors import Blip2rtError, CapabilityError
from blip2rt.image import to_pixels
from blip2rt.modeling.bert import BertSource
from blip2rt.modeling.checkpoint import Checkpoint
from blip2rt.modeling.sources import ExternalParts
from blip2rt_export import convert, describe
from tests.export.commands_in_process import export
from tests.seeds import new_seed, seed_of
from tests.tiny import blip2 as tiny_blip2
from tests.tiny import lavis as tiny_lavis
from tests.tiny import onnx_validity, question_input

pytestmark = pytest.mark.long(40, "whole exports: the question reaches the Q-Former in the bundle")

SEED = seed_of(__name__)
STEPS = 8
PROMPTS = ["", "a photo of", "Question: what colour is the dog? Short answer:"]


@dataclass
class Pair:
    """A checkpoint in transformers and in our runtime."""

    folder: Path
    reference: Any
    processor: Any
    model: blip2rt.Model

    def inputs(self, image: Any, prompt: str) -> dict[str, Any]:
        return dict(self.processor(images=image, text=prompt, return_tensors="pt"))

    @torch.no_grad()
    def wanted(self, image: Any, prompt: str) -> str:
        """Return the text that transformers generates."""
        inputs = self.inputs(image, prompt)
        said = self.reference.generate(**inputs, do_sample=False, max_new_tokens=STEPS, min_new_tokens=1)[0].tolist()
        if not self.reference.language_model.config.is_encoder_decoder and said[: tiny_blip2.QUERIES] == (
            [tiny_blip2.IMAGE] * tiny_blip2.QUERIES
        ):
            said = said[inputs["input_ids"].shape[1] :]
        return self.processor.tokenizer.decode(said, skip_special_tokens=True).strip()


def made(folder: Path) -> Pair:
    torch.manual_seed(SEED)
    checkpoint = tiny_blip2.instruct(folder / "hf", tiny_blip2.TEXT_CONFIGS["llama"]())
    bundle = export(checkpoint, folder / "bundle")
    reference = transformers.InstructBlipForConditionalGeneration.from_pretrained(checkpoint).float().eval()
    processor = transformers.AutoProcessor.from_pretrained(checkpoint)
    processor.image_processor = tiny_blip2.PILLOW.from_pretrained(checkpoint)
    return Pair(checkpoint, reference, processor, blip2rt.load(bundle, threads=1))


def check(pair: Pair) -> None:
    """Compare prefixes within float32 rounding, and greedy texts."""
    images = tiny_blip2.photographs(len(PROMPTS), np.random.default_rng(SEED))
    for image, prompt in zip(images, PROMPTS, strict=True):
        inputs = pair.inputs(image, prompt)
        keys = ("pixel_values", "qformer_input_ids", "qformer_attention_mask")
        with torch.no_grad():
            want = pair.reference.get_image_features(**{key: inputs[key] for key in keys})
        if not isinstance(want, torch.Tensor):
            want = getattr(want, "pooler_output", None) if hasattr(want, "pooler_output") else want[0]
        got = pair.model.pipeline.prefix_embeds(pair.model.pipeline.prepare_each([image]), [prompt])
        assert np.abs(got - want.numpy()).max() < 1e-4
        options: Any = {"num_beams": 1, "max_new_tokens": STEPS, "min_new_tokens": 1, "raw": True}
        assert pair.model.caption(image, prompt=prompt, **options).strip() == pair.wanted(image, prompt)
    template = pair.model.bundle.manifest.prompts["ask"]
    answer = pair.model.ask(images[0], "what is red", num_beams=1, max_new_tokens=STEPS)
    assert answer == pair.wanted(images[0], template.replace("{}", "what is red"))


def test_hugging_face_folders_match_generate(tmp_path: Path) -> None:
    pair = made(tmp_path)
    assert not onnx_validity.faults(tmp_path / "bundle")
    check(pair)
    shutil.rmtree(pair.folder / "qformer_tokenizer")
    with pytest.raises(Blip2rtError, match="qformer_tokenizer.*give --qformer-tokenizer FOLDER"):
        describe.require_tokenizers(Checkpoint(pair.folder))


@torch.no_grad()
def test_lavis_vicuna_files_match_transformers(tmp_path: Path) -> None:
    """Prompts begin with </s>, as LAVIS configures the tokenizer."""
    torch.manual_seed(SEED)
    checkpoint = tiny_blip2.instruct(tmp_path / "hf", tiny_blip2.TEXT_CONFIGS["llama"]())
    model = transformers.InstructBlipForConditionalGeneration.from_pretrained(checkpoint).eval()
    model.vision_model.post_layernorm.eps = 1e-5
    state = tiny_lavis.state_of(model, "llm_proj")
    state = {re.sub(r"(bert\.embeddings\.)layernorm", r"\1LayerNorm", name): each for name, each in state.items()}
    torch.save({"model": state}, tmp_path / "vicuna.pth")
    model.language_model.save_pretrained(tmp_path / "llm")
    tiny_blip2.llm_tokenizer().save_pretrained(tmp_path / "llm")
    with pytest.raises(Blip2rtError, match="give --llm FOLDER with the Vicuna"):
        Checkpoint(tmp_path / "vicuna.pth", ExternalParts(qformer_tokenizer=str(checkpoint / "bert"))).load()
    llm, bert = str(tmp_path / "llm"), str(checkpoint / "qformer_tokenizer")
    parts = ExternalParts(llm=llm, vision_heads=4, qformer_heads=4, qformer_tokenizer=bert)
    opened = Checkpoint(tmp_path / "vicuna.pth", parts)
    ours = opened.load()
    assert ours.config.question_input and ours.config.stage == 2
    assert ours.config.question_prompt == ours.config.llm.ask_prompt
    pixels, ids = torch.randn(2, 3, 28, 28), torch.randint(5, 20, (2, 7))
    mask = torch.tensor([[1] * 7, [1, 1, 1, 1, 0, 0, 0]])
    want = model.get_image_features(pixel_values=pixels, qformer_input_ids=ids, qformer_attention_mask=mask)
    want = want if isinstance(want, torch.Tensor) else want.pooler_output
    got = ours.prefix_embeds(ours.query_output(ours.vision_features(pixels), ids, mask))
    assert (got - want).abs().max() < 1e-4
    llm = describe.language_model(opened, ours.llm, tmp_path, 64)
    assert llm.spec.eos_token_ids == (1,) and [each[0] for each in llm.prompts] == [1] * 3 and llm.prompts[0] == [1]


QUESTIONS = ["What is red?", "is the man in the snow with a dog and two cats", "a dog"]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, blip2rt.Model]:
    """Our checkpoint, in PyTorch and as a bundle."""
    torch.manual_seed(SEED)
    return question_input.export_model(tmp_path_factory.mktemp("question"))


@torch.no_grad()
def pytorch_prefix(model: Any, pixels: np.ndarray, texts: list[str]) -> Any:
    """Compute PyTorch's prefix for texts as the Q-Former reads them."""
    tokens = BertSource(model.config.qformer_init).tokenizer(
        texts, padding=True, truncation=True, max_length=9, return_tensors="pt"
    )
    seen = model.vision_features(torch.from_numpy(pixels))
    return model.prefix_embeds(model.query_output(seen, tokens["input_ids"], tokens["attention_mask"]))


def test_answers_equal_pytorch(own: tuple[Path, Any, blip2rt.Model]) -> None:
    _, reference, model = own
    images = tiny_blip2.photographs(3, np.random.default_rng(SEED))
    pixels = to_pixels(images, model.bundle.manifest.image)
    read = ["the what is red?", "the is the man in the snow with a dog and two cats", "the a dog"]
    want = pytorch_prefix(reference, pixels, read)
    got = model.pipeline.prefix_embeds(
        model.pipeline.prepare_each(images), [model.pipeline.qformer_question(question) for question in QUESTIONS]
    )
    assert np.abs(got - want.numpy()).max() < 1e-4
    other = pytorch_prefix(reference, pixels, ["the blue"] * 3)
    assert (other - want).abs().max() > 1e-2, "the question changes nothing: this tests nothing"
    answers = model.ask(images, QUESTIONS, num_beams=1, max_new_tokens=8)
    assert model.ask(images[0], QUESTIONS, num_beams=1, max_new_tokens=8)[0] == answers[0]
    pieces = model.stream(images[1], question=QUESTIONS[1], num_beams=1, max_new_tokens=8)
    assert "".join(pieces) == answers[1]


def test_unsupported_uses_are_one_line_errors(own: tuple[Path, Any, blip2rt.Model], tmp_path: Path) -> None:
    folder, _, model = own
    with pytest.raises(CapabilityError, match="cannot chat: its Q-Former reads the question together"):
        model.chat(tiny_blip2.photographs(1, np.random.default_rng(new_seed()))[0])
    with pytest.raises(Blip2rtError, match="question_input"):
        convert.convert(Checkpoint(folder / "ckpt"), "hf", tmp_path / "hf", "float32")
