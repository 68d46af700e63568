"""Which files and tensors of a folder are read, as transformers does, and which are rejected."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from blip2rt.errors import Blip2rtError
from blip2rt.modeling.weights import Weights
from tests.tiny import blip2 as tiny_blip2

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


def test_tensors_that_the_index_omits_are_read(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama / "shards", tmp_path, dirs_exist_ok=True)
    file = tmp_path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    shards = list(index["weight_map"].values())
    name = next(name for name, shard in index["weight_map"].items() if shards.count(shard) > 1)
    del index["weight_map"][name]
    file.write_text(json.dumps(index))
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path).state_dict()[name]
    assert torch.equal(Weights(tmp_path).read(name), theirs)


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
