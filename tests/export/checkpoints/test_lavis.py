"""LAVIS' .pth files -> our model -> Hugging Face folder and back, with random tiny models.

The .pth files are made from transformers' models by the names that LAVIS' conversion to Hugging Face documents.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from blip2rt.errors import Blip2rtError
from blip2rt.modeling.checkpoint import Checkpoint
from blip2rt.modeling.sources import ExternalParts
from blip2rt_export.convert import main
from tests.seeds import new_seed, seed_of
from tests.tiny import blip2 as tiny_blip2
from tests.tiny import lavis as tiny_lavis

SEED = seed_of(__name__)


@pytest.fixture(scope="module")
def stage2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path, ExternalParts]:
    torch.manual_seed(SEED)
    return tiny_lavis.stage2(tmp_path_factory.mktemp("lavis"))


@torch.no_grad()
def outputs(model: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    features = model.vision_features(pixels)
    prefix = model.prefix_embeds(model.query_output(features))
    return model.vision_norm(features), prefix, model.llm(inputs_embeds=prefix).logits


@torch.no_grad()
def theirs(model: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    seen = model.vision_model(pixels).last_hidden_state
    queries = model.query_tokens.expand(len(pixels), -1, -1)
    prefix = model.language_projection(model.qformer(query_embeds=queries, encoder_hidden_states=seen)[0])
    return seen, prefix, model.language_model(inputs_embeds=prefix).logits


@pytest.mark.parametrize("finetuned", [False, True])
def test_stage_2_equals_hugging_face(stage2: tuple[Any, Path, Path, ExternalParts], finetuned: bool) -> None:
    model, trained, whole, parts = stage2
    if finetuned:
        parts = ExternalParts(llm=parts.llm, vision_heads=4, qformer_heads=2)
    ours = Checkpoint(whole if finetuned else trained, parts).load()
    assert ours.config.vision.vit.layers == tiny_blip2.VISION["num_hidden_layers"]
    pixels = torch.randn(2, 3, 28, 28)
    for got, want in zip(outputs(ours, pixels), theirs(model, pixels), strict=True):
        assert (got - want).abs().max() < 1e-4


def test_stage_2_converts_to_hugging_face_and_back(
    stage2: tuple[Any, Path, Path, ExternalParts], tmp_path: Path
) -> None:
    _, trained, _, parts = stage2
    flags = ["--vision", str(parts.vision), "--llm", str(parts.llm), "--vision-heads", "4", "--qformer-heads", "2"]
    assert main([str(trained), "--to", "hf", "--out", str(tmp_path / "hf"), *flags]) == 0
    model = transformers.Blip2ForConditionalGeneration.from_pretrained(tmp_path / "hf").eval()
    pixels = torch.randn(2, 3, 28, 28)
    ours = Checkpoint(trained, parts).load()
    for got, want in zip(theirs(model, pixels), outputs(ours, pixels), strict=True):
        assert (got - want).abs().max() < 1e-3  # epsilons differ
    back = Checkpoint(tmp_path / "hf").load()
    for got, want in zip(outputs(back, pixels), outputs(ours, pixels), strict=True):
        assert (got - want).abs().max() < 1e-6
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "hf")
    inputs = processor(
        images=tiny_blip2.photographs(1, np.random.default_rng(new_seed())), text="a photo of", return_tensors="pt"
    )
    assert model.generate(**inputs, max_new_tokens=3).shape[0] == 1


@torch.no_grad()
def test_stage_1_survives_a_round_trip(tmp_path: Path) -> None:
    torch.manual_seed(SEED)
    hf = tiny_blip2.retrieval(tmp_path / "itm", qformer=tiny_lavis.QFORMER)
    model = transformers.Blip2ForImageTextRetrieval.from_pretrained(hf).eval()
    state = tiny_lavis.state_of(model, "none")
    words, width = state["Qformer.bert.embeddings.word_embeddings.weight"].shape
    state |= {
        "temp": torch.tensor(0.0321),
        "Qformer.cls.predictions.bias": torch.randn(words),
        "Qformer.cls.predictions.transform.dense.weight": torch.randn(width, width),
        "Qformer.cls.predictions.transform.dense.bias": torch.randn(width),
        "Qformer.cls.predictions.transform.LayerNorm.weight": torch.randn(width),
        "Qformer.cls.predictions.transform.LayerNorm.bias": torch.randn(width),
        "Qformer.cls.predictions.decoder.weight": state["Qformer.bert.embeddings.word_embeddings.weight"],
        "Qformer.bert.embeddings.position_ids": torch.arange(48)[None],
    }
    torch.save({"model": state}, tmp_path / "stage1.pth")
    parts = ExternalParts(vision_heads=4, qformer_heads=2, qformer_tokenizer=str(hf / "bert"))
    ours = Checkpoint(tmp_path / "stage1.pth", parts).load()
    assert float(ours.temperature) == pytest.approx(0.0321)
    arguments = ["--vision-heads", "4", "--qformer-heads", "2", "--qformer-tokenizer", str(hf / "bert")]
    assert main([str(tmp_path / "stage1.pth"), "--to", "hf", "--out", str(tmp_path / "back"), *arguments]) == 0
    back = Checkpoint(tmp_path / "back").load()
    assert back.state_dict().keys() == ours.state_dict().keys()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name
    again = transformers.Blip2ForImageTextRetrieval.from_pretrained(tmp_path / "back").eval()
    pixels, ids = torch.randn(2, 3, 28, 28), torch.randint(5, words, (2, 7))
    mask = torch.tensor([[1] * 7, [1, 1, 1, 1, 0, 0, 0]])
    for head in (True, False):
        want, got = (
            each(pixel_values=pixels, input_ids=ids, attention_mask=mask, use_image_text_matching_head=head)[0]
            for each in (model, again)
        )
        assert (got - want).abs().max() < 1e-4
    model.vision_model.post_layernorm.eps = 1e-5
    want = model(pixel_values=pixels, input_ids=ids, attention_mask=mask, use_image_text_matching_head=True)
    assert (ours.itm_logits(ours.vision_features(pixels), ids, mask) - want.logits_per_image).abs().max() < 1e-3


@torch.no_grad()
def test_clip_encoder_equals_transformers(tmp_path: Path) -> None:
    """The features before CLIP's last block."""
    from blip2rt.modeling.vision import VisionConfig, VisionEncoder
    from blip2rt.modeling.vit import VitConfig

    torch.manual_seed(SEED)
    config = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=7
    )
    model = tiny_blip2.shake(transformers.CLIPVisionModel(config))
    source = {name.removeprefix("vision_model."): tensor for name, tensor in model.state_dict().items()}
    state = {
        "class_embedding": source["embeddings.class_embedding"],
        "positional_embedding": source["embeddings.position_embedding.weight"],
        "conv1.weight": source["embeddings.patch_embedding.weight"],
    }
    for kind in ("weight", "bias"):
        state[f"ln_pre.{kind}"], state[f"ln_post.{kind}"] = source[f"pre_layrnorm.{kind}"], torch.randn(32)
        for i in range(3):
            layer, block = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
            parts = [source[f"{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            state[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
            for here, there in tiny_lavis.CLIP_NAMES.items():
                state[f"{block}.{here}.{kind}"] = source[f"{layer}.{there}.{kind}"]
    torch.save(state, tmp_path / "clip.pth")
    vit = VitConfig(32, 2, 4, 64, 7, "quick_gelu", 1e-5, patch_bias=False, pre_norm=True)
    encoder = VisionEncoder(VisionConfig("vit", str(tmp_path / "clip.pth"), 28, 28, positions=17, features=32, vit=vit))
    pixels = torch.randn(2, 3, 28, 28)
    want = model(pixels, output_hidden_states=True).hidden_states[-2]
    assert (encoder(pixels) - want).abs().max() < 1e-4


def test_missing_parts_are_named(stage2: tuple[Any, Path, Path, ExternalParts]) -> None:
    _, trained, _, parts = stage2
    with pytest.raises(Blip2rtError, match=r"--vision.*--llm"):
        Checkpoint(trained).load()
    with pytest.raises(Blip2rtError, match="is not a BLIP-2 checkpoint of LAVIS"):
        Checkpoint(str(parts.vision)).load()


def test_language_model_of_another_kind_is_rejected(
    stage2: tuple[Any, Path, Path, ExternalParts], tmp_path: Path
) -> None:
    tiny_blip2.llm_tokenizer().save_pretrained(tmp_path)
    tiny_blip2.TEXT_CONFIGS["t5"]().save_pretrained(tmp_path)
    with pytest.raises(Blip2rtError, match="opt_proj is of .*: give --llm FOLDER with one of these"):
        Checkpoint(stage2[2], ExternalParts(llm=str(tmp_path), vision_heads=4, qformer_heads=2)).load()
