"""InstructBLIP, whose queries read the prompt: Hugging Face folders as bundles, and LAVIS' Vicuna files."""

from __future__ import annotations

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
from blip2rt.errors import Blip2rtError
from blip2rt.modeling.checkpoint import Checkpoint
from blip2rt.modeling.sources import ExternalParts
from blip2rt_export import describe
from tests.export.commands_in_process import export
from tests.seeds import seed_of
from tests.tiny import blip2 as tiny_blip2
from tests.tiny import lavis as tiny_lavis
from tests.tiny import onnx_validity

pytestmark = pytest.mark.long(40, "whole exports: the question reaches the Q-Former in the bundle")

SEED = seed_of(__name__)
STEPS = 8
PROMPTS = ["", "a photo of", "Question: what colour is the dog? Short answer:"]
# transformers resizes with torchvision by default, which differs from Pillow by a level of 255 here and there
PILLOW: Any = getattr(transformers, "BlipImageProcessorPil", transformers.BlipImageProcessor)


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


def made(name: str, folder: Path) -> Pair:
    torch.manual_seed(SEED)
    checkpoint = tiny_blip2.instruct(folder / "hf", tiny_blip2.TEXT_CONFIGS[name]())
    bundle = export(checkpoint, folder / "bundle")
    reference = transformers.InstructBlipForConditionalGeneration.from_pretrained(checkpoint).float().eval()
    processor = transformers.AutoProcessor.from_pretrained(checkpoint)
    processor.image_processor = PILLOW.from_pretrained(checkpoint)
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
    pair = made("llama", tmp_path)
    assert not onnx_validity.faults(tmp_path / "bundle")
    check(pair)
    shutil.rmtree(pair.folder / "qformer_tokenizer")
    with pytest.raises(Blip2rtError, match="qformer_tokenizer.*give --qformer-tokenizer FOLDER"):
        describe.require_tokenizers(Checkpoint(pair.folder))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["opt", "t5"])
def test_other_language_models_match_generate(name: str, tmp_path: Path) -> None:
    check(made(name, tmp_path))


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
    spec, prompts = describe.llm_spec(opened, ours.llm, tmp_path, 64)
    assert spec.eos_token_ids == (1,) and [each[0] for each in prompts.plain] == [1] * 3 and prompts.plain[0] == [1]
    others = (prompts.test[1:], prompts.calibration[1:])
    unknown = tiny_blip2.llm_tokenizer().unk_token_id
    assert all(len(ids) > 4 and unknown not in ids for some in others for ids in some)
    assert not set(map(tuple, others[0])) & set(map(tuple, others[1]))


def test_file_without_a_projection_is_rejected(tmp_path: Path) -> None:
    state = {"query_tokens": torch.zeros(1, 5, 32), "Qformer.bert.encoder.layer.0.x": torch.zeros(1)}
    torch.save({"model": state}, tmp_path / "odd.pth")
    with pytest.raises(Blip2rtError, match="no projection of stage 2"):
        Checkpoint(tmp_path / "odd.pth", ExternalParts(vision=None)).load()
