"""All faults of a checkpoint are reported together in one line, before a bundle is started."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from blip2rt.errors import Blip2rtError
from blip2rt.modeling.llm import LanguageModelSource, LlmConfig
from blip2rt.modeling.vision import VisionConfig, encoder_shape
from blip2rt.modeling.weights import Weights
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


def lose_tensors(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        state = {name: tensor for name, tensor in load_file(file).items() if name not in LOST}
        if "language_projection.weight" in state:
            state["language_projection.weight"] = torch.zeros(3, 5)
        save_file(state, file)


def unsupported_values(folder: Path) -> None:
    data = json.loads((folder / "config.json").read_text())
    vision = {**data["vision_config"], "hidden_act": "swish9", "num_attention_heads": 7}
    edit(folder, vision_config=vision, qformer_config={**data["qformer_config"], "hidden_act": "relu"})


def integers(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    chosen = [name for name in state if name.endswith("_proj.weight") or name == "language_projection.weight"]
    save_file(state | {name: state[name].to(torch.int8) for name in chosen}, folder / "model.safetensors")


LOST = ("query_tokens", "vision_model.encoder.layers.1.mlp.fc1.weight", "language_model.model.norm.weight")
BLIP = {"model_type": "blip", "architectures": ["BlipForConditionalGeneration"]}
FAULTS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {  # what damages a folder, and words of the error
    "missing and misshaped tensors": (lose_tensors, (*LOST, "language_projection.weight is (3, 5)")),
    "an unknown architecture": (lambda f: edit(f, **BLIP), (*BLIP["architectures"], "TextRetrieval", "LAVIS")),
    "unsupported values": (unsupported_values, ("swish9", "7 heads", "'relu'")),
    "half a config": (lambda f: (f / "config.json").write_text("{"), ("damaged",)),
    "an empty config": (lambda f: (f / "config.json").write_text("{}"), ("damaged",)),
    "GPTQ": (lambda f: edit(f, quantization_config={"quant_method": "gptq"}), ("method is 'gptq'", "dequantize")),
    "an unnamed method": (lambda f: edit(f, quantization_config={"bits": 4}), ("method is None", "dequantize")),
    "integers": (integers, ("int8", "language_projection.weight", "language_model.")),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_named(checkpoint_copy: Path, export_error: Callable[..., str], name: str) -> None:
    damage, words = FAULTS[name]
    damage(checkpoint_copy)
    line = export_error(checkpoint_copy)
    assert all(word in line for word in words), line


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


def test_separate_language_model_follows_the_same_rules(tmp_path: Path) -> None:
    config = tiny_blip2.TEXT_CONFIGS["llama"]()
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    edit(tmp_path, quantization_config={"quant_method": "gptq"})
    with pytest.raises(Blip2rtError, match="'gptq'"):
        LanguageModelSource(LlmConfig(source=str(tmp_path))).load()
    edit(tmp_path, quantization_config=None)
    state = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file(state | {name: state[name].to(torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(Blip2rtError, match="q_proj.weight is of type int8"):
        LanguageModelSource(LlmConfig(source=str(tmp_path))).load()


NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    model = transformers.LlamaForCausalLM(tiny_blip2.TEXT_CONFIGS["llama"]())
    model.save_pretrained(folder / "shards", max_shard_size="60KB")
    model.save_pretrained(folder / "whole")
    return folder


def test_whole_file_takes_precedence_over_a_stale_index(llama: Path, tmp_path: Path) -> None:
    """save_pretrained leaves the index of an earlier call, whose shards it removes."""
    shutil.copytree(llama / "whole", tmp_path, dirs_exist_ok=True)
    shutil.copy(llama / "shards" / "model.safetensors.index.json", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({**state, NAME: state[NAME] + 1}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path).state_dict()
    weights = Weights(tmp_path)
    assert all(torch.equal(weights.read(name), theirs[name]) for name in state)


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_no_numbers_are_rejected(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    tensor = torch.ones(3, 4, dtype=dtype)
    tensor[2, 1] = value
    save_file({"a": tensor, "b": torch.ones(2, dtype=dtype)}, tmp_path / "model.safetensors")
    weights = Weights(tmp_path)
    assert weights.read("b").sum() == 2
    with pytest.raises(Blip2rtError, match=r": a contains NaN or infinity: take a checkpoint from"):
        weights.read("a")


def test_8_bit_floats_are_rejected_by_name(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2, 2).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(
        Blip2rtError, match=r"a is of type F8_E4M3, and F64, .* can be read: give the original"
    ) as error:
        Weights(tmp_path)
    assert "damaged" not in str(error.value)
