"""All faults of a checkpoint are reported together in one line, before a bundle is started."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from blip2rt.errors import Blip2rtError
from blip2rt.modeling.vision import VisionConfig, encoder_shape
from tests.tiny import blip2 as tiny_blip2

ROOT = Path(__file__).parents[3]


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_missing_shards_are_all_named(tmp_path: Path, export_error: Callable[..., str]) -> None:
    copy = tiny_blip2.generative(tmp_path / "hf", tiny_blip2.TEXT_CONFIGS["llama"](), max_shard_size="60KB")
    shards = sorted(copy.glob("model-*.safetensors"))
    shards[0].unlink()
    shards[2].write_bytes(shards[2].read_bytes()[:-5])
    line = export_error(copy)
    assert f"{shards[0].name} is missing" in line and f"{shards[2].name} is damaged" in line
    assert line.count(shards[0].name) == 1


def test_photograph_is_rejected(export_error: Callable[..., str]) -> None:
    """PyTorch's own error would suggest how to run code from the untrusted file."""
    line = export_error(ROOT / "docs" / "photo.jpg")
    assert "photo.jpg: it is damaged: it was not saved by PyTorch, or contains more than tensors" in line
    assert "weights_only" not in line


def test_missing_and_misshaped_tensors_are_named(checkpoint_copy: Path, export_error: Callable[..., str]) -> None:
    lost = ("query_tokens", "vision_model.encoder.layers.1.mlp.fc1.weight", "language_model.model.norm.weight")
    for file in checkpoint_copy.glob("*.safetensors"):
        state = {name: tensor for name, tensor in load_file(file).items() if name not in lost}
        if "language_projection.weight" in state:
            state["language_projection.weight"] = torch.zeros(3, 5)
        save_file(state, file)
    line = export_error(checkpoint_copy)
    assert all(name in line for name in lost) and "language_projection.weight is (3, 5)" in line


def test_unknown_architecture_is_named(checkpoint_copy: Path, export_error: Callable[..., str]) -> None:
    edit(checkpoint_copy, model_type="blip", architectures=["BlipForConditionalGeneration"])
    line = export_error(checkpoint_copy)
    assert "BlipForConditionalGeneration" in line and "Blip2ForImageTextRetrieval" in line and "LAVIS" in line


def test_unsupported_values_are_named_together(checkpoint_copy: Path, export_error: Callable[..., str]) -> None:
    data = json.loads((checkpoint_copy / "config.json").read_text())
    vision = {**data["vision_config"], "hidden_act": "swish9", "num_attention_heads": 7}
    edit(checkpoint_copy, vision_config=vision, qformer_config={**data["qformer_config"], "hidden_act": "relu"})
    line = export_error(checkpoint_copy)
    assert "swish9" in line and "7 heads" in line and "'relu'" in line


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model_type": "blip-2", "vision_config": 3}'])
def test_damaged_config_is_named(checkpoint_copy: Path, export_error: Callable[..., str], text: str) -> None:
    (checkpoint_copy / "config.json").write_text(text)
    assert "damaged" in export_error(checkpoint_copy)


def test_encoder_that_needs_more_than_pixels_is_rejected(tmp_path: Path) -> None:
    """SigLIP 2 NaFlex takes patches of images of any proportions."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.Siglip2VisionConfig(**sizes, num_patches=16, patch_size=7).save_pretrained(tmp_path)
    with pytest.raises(
        Blip2rtError, match=r"cannot read 28 x 28 pixels \(.*'spatial_shapes'\): choose another encoder"
    ):
        encoder_shape(VisionConfig(source=f"hf:{tmp_path}", height=28, width=28))


def test_unreachable_hub_is_a_one_line_error(export_error: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route\n\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    line = export_error("Salesforce/blip2-opt-2.7b")
    assert "Salesforce/blip2-opt-2.7b" in line and "no route" in line and "folder" in line
