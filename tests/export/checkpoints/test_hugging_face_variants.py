"""Hugging Face checkpoints beside the plain BLIP-2: retrieval, larger images, streamed weights, other tensors."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import blip2rt
from blip2rt.image import to_pixels
from blip2rt.modeling import streaming
from blip2rt.modeling.checkpoint import Checkpoint
from tests.export.commands_in_process import export
from tests.seeds import new_seed, seed_of
from tests.tiny import blip2 as tiny_blip2
from tests.tiny.llm_configs import HIDDEN

pytestmark = pytest.mark.long(25, "whole exports of variants, compared with transformers")

SEED = seed_of(__name__)


@torch.no_grad()
def test_renamed_tensors_are_found(tmp_path: Path) -> None:
    """GPT-NeoX's head has an older name on disk, which only transformers knows."""
    torch.manual_seed(SEED)
    checkpoint = tiny_blip2.generative(tmp_path / "hf", tiny_blip2.TEXT_CONFIGS["gpt_neox"]())
    reference = transformers.Blip2ForConditionalGeneration.from_pretrained(checkpoint).language_model.eval()
    ours = Checkpoint(checkpoint).load(vision=False, streamed=True).llm
    embeds = torch.randn(2, 5, HIDDEN)
    got, want = (each(inputs_embeds=embeds).logits for each in (ours, reference))
    assert (got - want).abs().max() < 1e-5


@torch.no_grad()
def test_retrieval_scores_equal_hugging_face(tmp_path: Path) -> None:
    torch.manual_seed(SEED)
    checkpoint = tiny_blip2.retrieval(tmp_path / "hf")
    model = blip2rt.load(export(checkpoint, tmp_path / "bundle"), threads=1)
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
def test_streamed_weights_export_and_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a model larger than memory, nearly all weights stay on disk until they are used."""
    torch.manual_seed(SEED)
    monkeypatch.setattr(streaming, "SMALL", 200)
    checkpoint = tiny_blip2.generative(tmp_path / "hf", tiny_blip2.TEXT_CONFIGS["opt"](), dtype=torch.bfloat16)
    model = Checkpoint(checkpoint).load(streamed=True)
    assert sum(map(streaming.is_bound, model.parameters())) > 40
    precision = "vision=int8,qformer=int8w,llm=int4"
    bundle = blip2rt.load(export(checkpoint, tmp_path / "bundle", precision=precision), threads=1)
    checks = {check.component: check for check in bundle.bundle.manifest.verification}
    assert checks["vision"].precision == "int8-dynamic" and checks["vision"].cosine > 0.99
    assert checks["llm"].agreement > 0.3
    assert isinstance(bundle.caption(tiny_blip2.photographs(1, np.random.default_rng(new_seed()))[0]), str)


@torch.no_grad()
@pytest.mark.parametrize("size", [364, 490])
def test_larger_images_interpolate_positions(size: int, tmp_path: Path) -> None:
    """A checkpoint of 224 pixels exported in the sizes of finetuned models; like ViT-g/14 but narrow and shallow."""
    torch.manual_seed(SEED)
    vit = {"image_size": 224, "patch_size": 14, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    checkpoint = tiny_blip2.generative(tmp_path / "hf", tiny_blip2.TEXT_CONFIGS["llama"](), vision=vit)
    reference = transformers.Blip2ForConditionalGeneration.from_pretrained(checkpoint).eval()
    model = blip2rt.load(export(checkpoint, tmp_path / "bundle", "--image-size", size, "--no-verify"), threads=1)
    images = tiny_blip2.photographs(2, np.random.default_rng(SEED))
    pixels = torch.from_numpy(to_pixels(images, model.bundle.manifest.image))
    features = model.vision_features(images)
    assert pixels.shape[2:] == (size, size) and features.shape[1] == 1 + (size // 14) ** 2
    seen = reference.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state
    ours = Checkpoint(checkpoint).load(llm=False).vision_norm(torch.from_numpy(features))
    assert (ours - seen).abs().max() < 1e-4
