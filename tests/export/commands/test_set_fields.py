"""`blip2rt-convert CKPT --set FIELD=VALUE` changes fields and no tensors; mistakes are one-line errors."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from blip2rt.modeling.blip2 import Blip2, Blip2Config, TrainableModel
from blip2rt.modeling.checkpoint import CONFIG, WEIGHTS, Checkpoint, save_model
from blip2rt.modeling.llm import LanguageModelSource, LlmConfig
from blip2rt.modeling.qformer import QFormerConfig
from blip2rt.modeling.vision import VisionConfig, VisionEncoder
from tests.export.commands_in_process import convert
from tests.tiny.training import llm_folder

QFORMER = QFormerConfig(
    16, 2, 2, 32, queries=4, vision_width=12, cross_attention_frequency=1, vocab_size=20, max_positions=8
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage-1 training's folder, whose newest checkpoint is used."""
    run = tmp_path_factory.mktemp("run")
    torch.manual_seed(3)
    for name in ("step-000001", "step-000002"):
        (run / name).mkdir()
        save_model(Blip2(Blip2Config(1, VisionConfig(positions=9, features=12), QFORMER)), run / name)
    return run


def tensors(folder: Path) -> str:
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def test_fields_change_and_tensors_do_not(checkpoint: Path, tmp_path: Path) -> None:
    fields = ["qformer_bits=4", "itm_weight=2", "vision.weights=some/encoder", "vision.mean=[0.1, 0.2, 0.3]"]
    fields += ["qformer.dropout=0", "clean_captions=true", "question_prompt=4"]
    arguments = [word for field in fields for word in ("--set", field)]
    out, newest = convert(checkpoint, tmp_path / "out", *arguments), checkpoint / "step-000002"
    assert tensors(out) == tensors(newest)
    assert {path.name for path in out.iterdir()} == {CONFIG, WEIGHTS}
    wanted = json.loads((newest / CONFIG).read_text())
    wanted |= {"qformer_bits": 4, "itm_weight": 2, "clean_captions": True, "question_prompt": "4"}
    wanted["vision"] |= {"weights": "some/encoder", "mean": [0.1, 0.2, 0.3]}
    wanted["qformer"]["dropout"] = 0
    assert json.loads((out / CONFIG).read_text()) == wanted
    assert Checkpoint(out).config.qformer_bits == 4


def test_int4_setting_rounds_weights_on_loading(checkpoint: Path, tmp_path: Path) -> None:
    int4 = convert(checkpoint, tmp_path / "4", "--set", "qformer_bits=4", "--set", "qformer_block=16")
    paths = (checkpoint, int4, convert(int4, tmp_path / "0", "--set", "qformer_bits=0"))
    exact, rounded, back = (Checkpoint(path).load().trained_state() for path in paths)
    name = "qformer.layers.0.attention.query.weight"
    assert not torch.equal(exact[name], rounded[name]) and torch.allclose(exact[name], rounded[name], atol=0.05)
    assert all(torch.equal(tensor, back[name]) for name, tensor in exact.items())


def test_stage_2_has_language_model_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llm = LlmConfig(source=str(llm_folder(tmp_path / "llm")), end="<|end|>")
    config = Blip2Config(2, VisionConfig(positions=9, features=12), replace(QFORMER, text_branch=False), llm)
    (tmp_path / "stage2").mkdir()
    save_model(Blip2(config, llm_width=LanguageModelSource(llm).hidden_size), tmp_path / "stage2")
    fields = ["--set", "llm.bits=4", "--set", "llm.caption_prompt=a photo of"]
    out = convert(tmp_path / "stage2", tmp_path / "out", *fields)
    assert Checkpoint(out).config == replace(config, llm=replace(llm, bits=4, caption_prompt="a photo of"))
    assert tensors(out) == tensors(tmp_path / "stage2")
    convert(tmp_path / "stage2", tmp_path / "other", "--set", "llm.bits=5", status=2)
    assert "llm.bits is 5: give 0, 4, 8" in capsys.readouterr().err


def test_own_encoder_keeps_its_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint that contains its own encoder does not fit another one."""
    config = Blip2Config(vision=VisionConfig("timm:test_efficientnet", height=64, width=64, positions=4, features=256))
    model = TrainableModel(Blip2Config(vision=config.vision, vision_trained=True))
    model.vision = VisionEncoder(config.vision)
    (tmp_path / "encoder").mkdir()
    save_model(model, tmp_path / "encoder")
    out = convert(tmp_path / "encoder", tmp_path / "out", "--set", "vision.resample=bilinear")
    assert tensors(out) == tensors(tmp_path / "encoder")
    convert(tmp_path / "encoder", tmp_path / "other", "--set", "vision.source=timm:test_convnext", status=2)
    assert "do not fit: vision." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "qformer_bit=4"], "unknown field 'qformer_bit': did you mean qformer_bits?"),
        (["--set", "vision.wieghts=x"], "unknown field 'vision.wieghts': did you mean vision.weights?"),
        (["--set", "llm.bits=4"], "unknown field 'llm.bits'"),
        (["--set", "vision=null"], "unknown field 'vision'"),
        (["--set", "qformer_bits"], "'qformer_bits' has no value: give FIELD=VALUE"),
        (["--set", "qformer_bits=four"], "qformer_bits is 'four': give a whole number"),
        (["--set", "qformer_bits=true"], "qformer_bits is 'true': give a whole number"),
        (["--set", "qformer_bits=5"], "qformer_bits is 5: give 0, 4, 8"),
        (["--set", "clean_captions=1"], "clean_captions is '1': give true or false"),
        (["--set", "vision.mean=1"], "vision.mean is '1': give a list in JSON"),
        (["--set", "itm_weight=much", "--set", "nothing=1"], "itm_weight is 'much': give a number; unknown field"),
        (["--set", "qformer.queries=5"], "query_tokens has the shape (1, 4, 16), but (1, 5, 16) would be needed"),
        (["--set", "embed_dim=8"], "do not fit: "),
        (["--set", "learned_positions=false"], "vision_positions has the shape (1, 9, 12), but none would be needed"),
        (["--set", "vision_trained=true"], "vision_trained determines the checkpoint"),
        (["--set", "stage=2"], "stage determines the checkpoint"),
        (["--set", "itm_weight=2", "--to", "hf"], "--set needs a checkpoint of ours"),
        ([], "--to"),
    ],
)
def test_invalid_field_is_a_one_line_error(
    checkpoint: Path, tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(checkpoint, tmp_path / "out", *arguments, status=2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("blip2rt-convert: error: ")
    assert said in error
    assert not list(tmp_path.iterdir()), "nothing was written"


def test_other_checkpoints_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file.pth").write_bytes(b"")
    bundle = Path(__file__).parents[3] / "blip2rt" / "models" / "nano"
    for source, said in ((tmp_path / "file.pth", "is not a checkpoint of blip2rt"), (bundle, "is a bundle")):
        convert(source, tmp_path / "out", "--set", "itm_weight=2", status=2)
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
        assert not (tmp_path / "out").exists()
