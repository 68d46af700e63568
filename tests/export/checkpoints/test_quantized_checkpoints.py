"""Quantized checkpoints: bitsandbytes and fp8 are dequantized, other methods rejected by name."""

from __future__ import annotations

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
from blip2rt.modeling import streaming
from blip2rt.modeling.checkpoint import Checkpoint
from blip2rt.modeling.llm import LanguageModelSource, LlmConfig
from tests.tiny import blip2 as tiny_blip2

State = dict[str, Any]
NF4 = list(map(float, "-1 -.6962 -.5251 -.3949 -.2844 -.1848 -.0911 0".split()))
NF4 += list(map(float, ".0796 .1609 .2461 .3379 .4407 .5626 .7230 1".split()))


def rows(name: str, weight: Any) -> tuple[State, Any]:
    """bitsandbytes' int8: codes, a scale for each row, and the number of a layout"""
    scale = weight.abs().amax(1)
    codes = (weight / scale[:, None] * 127).round().to(torch.int8)
    layout = torch.tensor(0, dtype=torch.uint8)
    stored = {f"{name}.weight": codes, f"{name}.SCB": scale, f"{name}.weight_format": layout}
    return stored, codes.double() * scale.double()[:, None] / 127


def blocks(name: str, weight: Any, nested: bool = False, storage: Any = torch.uint8) -> tuple[State, Any]:
    """bitsandbytes' nf4 in blocks of 64, with scales stored as floats or quantized themselves (nested)"""
    flat = weight.flatten()
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % 64)).view(-1, 64)
    scale, table = padded.abs().amax(1), torch.tensor(NF4)
    state: State = {f"{name}.weight.absmax": scale}
    about: State = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(weight.shape)}
    if nested:
        values = torch.linspace(-1, 1, 256)
        outer = (scale - scale.mean()).abs().max()
        codes = ((scale - scale.mean()) / outer)[:, None].sub(values).abs().argmin(1)
        state = {
            f"{name}.weight.absmax": codes.to(torch.uint8),
            f"{name}.weight.nested_absmax": outer[None],
            f"{name}.weight.nested_quant_map": values,
        }
        about |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": float(scale.mean())}
        scale = values[codes] * outer + scale.mean()
    codes = (padded / padded.abs().amax(1, keepdim=True))[..., None].sub(table).abs().argmin(-1)
    halves = codes.flatten()[: len(flat)].view(-1, 2)
    state[f"{name}.weight"] = (halves[:, 0] * 16 + halves[:, 1]).to(torch.uint8).view(storage).view(-1, 1)
    state[f"{name}.weight.quant_map"] = table
    encoded = torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)
    state[f"{name}.weight.quant_state.bitsandbytes__nf4"] = encoded
    want = (table[codes] * scale[:, None]).flatten()[: len(flat)].view(weight.shape)
    return state, want.bfloat16().double()


def nested(name: str, weight: Any) -> tuple[State, Any]:
    return blocks(name, weight, nested=True)


def wide(name: str, weight: Any) -> tuple[State, Any]:
    return blocks(name, weight, storage=torch.bfloat16)


def tiles(name: str, weight: Any) -> tuple[State, Any]:
    """fp8 with a scale for each tile of 128 x 128 (here one)"""
    scale = weight.abs().max() / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    return {f"{name}.weight": codes, f"{name}.weight_scale_inv": scale.view(1, 1)}, codes.double() * scale.double()


def quantize(whole: Path, folder: Path, way: Callable[..., tuple[State, Any]], config: State) -> dict[str, Any]:
    """Copy `whole` with the matrices of its language model and projection quantized. Return the dequantized ones."""
    shutil.copytree(whole, folder)
    state, want = load_file(folder / "model.safetensors"), {}
    for key in [key for key in state if key.endswith("_proj.weight") or key == "language_projection.weight"]:
        name = key.removesuffix(".weight")
        stored, want[name] = way(name, state.pop(key))
        state |= stored
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, "quantization_config": config}))
    return want


@pytest.mark.parametrize("way", [rows, blocks, nested, wide, tiles])
@pytest.mark.parametrize("streamed", [False, True])
def test_quantized_matrices_are_dequantized(
    llama_checkpoint: Path, tmp_path: Path, way: Callable[..., tuple[State, Any]], streamed: bool
) -> None:
    method = "fp8" if way is tiles else "bitsandbytes"
    want = quantize(llama_checkpoint, tmp_path / "model", way, {"quant_method": method})
    model = Checkpoint(tmp_path / "model").load(streamed=streamed)
    assert len(want) == 15
    for name, values in want.items():
        ours = "projection" if name == "language_projection" else name.replace("language_model.", "llm.")
        got = streaming.read(model.get_submodule(ours).weight).double()
        assert got.shape == values.shape and (got - values).abs().max() < 1e-6, name
    plain = Checkpoint(llama_checkpoint).load()
    error = (plain.projection.weight - model.projection.weight).abs().max()
    assert 0 < error < 0.15 * plain.projection.weight.abs().max()  # wrong decoding would be far off


def test_checkpoints_saved_by_bitsandbytes_are_read(llama_checkpoint: Path, tmp_path: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    for name, options in (("int8", {"load_in_8bit": True}), ("nf4", nf4)):
        config = transformers.BitsAndBytesConfig(**options)
        theirs = transformers.Blip2ForConditionalGeneration.from_pretrained(
            llama_checkpoint, quantization_config=config, device_map="cpu"
        )
        theirs.save_pretrained(tmp_path / name)
        model, plain = Checkpoint(tmp_path / name).load(), Checkpoint(llama_checkpoint).load()
        weight = theirs.language_projection.weight
        if name == "int8":
            want = weight.data.float() * weight.SCB[:, None] / 127
            assert torch.allclose(model.projection.weight, want, atol=1e-6)
        else:  # its CPU kernel uses other scales if a row is narrower than a block
            assert bitsandbytes is not None
            difference = (model.projection.weight - plain.projection.weight).abs().max()
            assert 0 < difference < 0.2 * plain.projection.weight.abs().max()


@pytest.mark.parametrize("method", ["gptq", "awq", "fbgemm_fp8", "compressed-tensors", "hqq", None])
def test_other_quantization_methods_are_rejected_by_name(
    llama_checkpoint: Path, tmp_path: Path, export_error: Callable[..., str], method: str | None
) -> None:
    quantize(llama_checkpoint, tmp_path / "model", rows, {"quant_method": method, "bits": 4})
    line = export_error(tmp_path / "model")
    assert f"quant_method is {method!r}" in line and "dequantize" in line


def test_integers_without_scales_are_rejected(
    llama_checkpoint: Path, tmp_path: Path, export_error: Callable[..., str]
) -> None:
    quantize(llama_checkpoint, tmp_path / "model", lambda name, w: ({f"{name}.weight": w.to(torch.int8)}, None), {})
    line = export_error(tmp_path / "model")
    assert "int8" in line and "language_projection.weight" in line and "language_model." in line


def test_separate_language_model_follows_the_same_rules(tmp_path: Path) -> None:
    config = tiny_blip2.TEXT_CONFIGS["llama"]()
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    data["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(Blip2rtError, match="'gptq'"):
        LanguageModelSource(LlmConfig(source=str(tmp_path))).load()
    state = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    weight = state.pop(f"{name}.weight")
    bare = {"model_type": data.pop("model_type")} | {k: v for k, v in data.items() if k != "quantization_config"}
    (tmp_path / "config.json").write_text(json.dumps(bare))
    save_file(state | {f"{name}.weight": weight.to(torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(Blip2rtError, match="q_proj.weight is of type int8"):
        LanguageModelSource(LlmConfig(source=str(tmp_path))).load()
    data = bare
    stored, want = rows(name, weight)
    save_file(state | stored, tmp_path / "model.safetensors")
    data["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (tmp_path / "config.json").write_text(json.dumps(data))
    got = LanguageModelSource(LlmConfig(source=str(tmp_path))).load().get_submodule(name).weight.double()
    assert (got - want).abs().max() < 1e-6
