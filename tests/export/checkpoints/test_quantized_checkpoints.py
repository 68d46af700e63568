"""Quantized checkpoints are rejected by name, before a weight is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from blip2rt.errors import Blip2rtError
from blip2rt.modeling.llm import LanguageModelSource, LlmConfig
from tests.tiny import blip2 as tiny_blip2


@pytest.mark.parametrize("method", ["bitsandbytes", "fp8", "gptq", None])
def test_quantization_methods_are_rejected_by_name(
    llama_checkpoint: Path, tmp_path: Path, export_error: Callable[..., str], method: str | None
) -> None:
    shutil.copytree(llama_checkpoint, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    quantized = {"quantization_config": {"quant_method": method, "bits": 4}}
    config.write_text(json.dumps({**json.loads(config.read_text()), **quantized}))
    line = export_error(tmp_path / "model")
    assert f"quant_method is {method!r}" in line and "dequantize" in line


def test_integers_are_rejected(llama_checkpoint: Path, tmp_path: Path, export_error: Callable[..., str]) -> None:
    shutil.copytree(llama_checkpoint, tmp_path / "model")
    state = load_file(tmp_path / "model" / "model.safetensors")
    chosen = [name for name in state if name.endswith("_proj.weight") or name == "language_projection.weight"]
    state |= {name: state[name].to(torch.int8) for name in chosen}
    save_file(state, tmp_path / "model" / "model.safetensors")
    line = export_error(tmp_path / "model")
    assert "int8" in line and "language_projection.weight" in line and "language_model." in line


def test_separate_language_model_follows_the_same_rules(tmp_path: Path) -> None:
    config = tiny_blip2.TEXT_CONFIGS["llama"]()
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    plain = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**plain, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(Blip2rtError, match="'gptq'"):
        LanguageModelSource(LlmConfig(source=str(tmp_path))).load()
    (tmp_path / "config.json").write_text(json.dumps(plain))
    state = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file(state | {name: state[name].to(torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(Blip2rtError, match="q_proj.weight is of type int8"):
        LanguageModelSource(LlmConfig(source=str(tmp_path))).load()
