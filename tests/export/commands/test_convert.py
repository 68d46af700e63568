"""`blip2rt-convert`: --set changes fields and no tensors; in folders of --to hf, Hugging Face's files decide."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from blip2rt.errors import Blip2rtError
from blip2rt.modeling.blip2 import Blip2, Blip2Config
from blip2rt.modeling.checkpoint import CONFIG, WEIGHTS, Checkpoint, save_model
from blip2rt.modeling.llm import LanguageModelSource, LlmConfig
from blip2rt.modeling.qformer import QFormerConfig
from blip2rt.modeling.vision import VisionConfig
from tests.export.commands_in_process import convert
from tests.tiny import blip2 as tiny_blip2
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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "qformer_bit=4"], "unknown field 'qformer_bit': did you mean qformer_bits?"),
        (["--set", "llm.bits=4"], "unknown field 'llm.bits'"),
        (["--set", "qformer_bits"], "'qformer_bits' has no value: give FIELD=VALUE"),
        (["--set", "qformer_bits=four"], "qformer_bits is 'four': give a whole number"),
        (["--set", "qformer_bits=5"], "qformer_bits is 5: give 0, 4, 8"),
        (["--set", "vision.mean=1"], "vision.mean is '1': give a list in JSON"),
        (["--set", "itm_weight=much", "--set", "nothing=1"], "itm_weight is 'much': give a number; unknown field"),
        (["--set", "qformer.queries=5"], "query_tokens has the shape (1, 4, 16), but (1, 5, 16) would be needed"),
        (["--set", "vision_trained=true"], "vision_trained determines the checkpoint"),
        (["--set", "itm_weight=2", "--to", "hf"], "--set needs a checkpoint of ours"),
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


OWN, PROCESSOR = "blip2rt_config.json", "processor_config.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted folder, with one field that Hugging Face's format cannot store."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("converted")
    source = tiny_blip2.generative(path / "source", tiny_blip2.TEXT_CONFIGS["opt"]())
    (source / OWN).write_text(json.dumps({"llm": {"caption_prompt": "a photo of"}}))
    return convert(source, path / "hf", "--to", "hf")


def edited(folder: Path, out: Path, file: str, keys: tuple[str, ...], value: Any) -> Path:
    shutil.copytree(folder, out)
    data = inner = json.loads((out / file).read_text())
    for key in keys[:-1]:
        inner = inner[key]
    assert inner[keys[-1]] != value
    inner[keys[-1]] = value
    (out / file).write_text(json.dumps(data))
    return out


def test_only_fields_that_config_json_lacks_are_stored(folder: Path) -> None:
    own = json.loads((folder / OWN).read_text())
    assert own.keys() == {"llm.caption_prompt", "qformer_init", "sources"}
    assert Checkpoint(folder).config.llm.caption_prompt == "a photo of"


EDITS: dict[str, tuple[str, tuple[str, ...], Any]] = {
    "mean": (PROCESSOR, ("image_processor", "image_mean"), [0.1, 0.2, 0.3]),
    "filter": (PROCESSOR, ("image_processor", "resample"), 2),
    "end": (CONFIG, ("text_config", "eos_token_id"), 7),
    "empty prompt": (CONFIG, ("text_config", "bos_token_id"), 5),
    "epsilon": (CONFIG, ("vision_config", "layer_norm_eps"), 1e-3),
    "image token": (CONFIG, ("image_token_index",), 3),
}


@pytest.mark.parametrize("name", EDITS)
def test_edits_of_their_files_take_effect(name: str, folder: Path, tmp_path: Path) -> None:
    copy = edited(folder, tmp_path / "copy", *EDITS[name])
    got = Checkpoint(copy).config
    assert got.llm.caption_prompt == "a photo of"
    (copy / OWN).unlink()
    want = Checkpoint(copy).config
    llm = replace(want.llm, caption_prompt="a photo of")
    assert got == replace(want, llm=llm, qformer_init=got.qformer_init, sources=got.sources)
    assert replace(got, vision=replace(got.vision, weights=str(folder))) != Checkpoint(folder).config


def whole(folder: Path) -> dict[str, Any]:
    """The whole config, as release 0.1 stored it."""
    return asdict(Checkpoint(folder).config)


def test_folders_of_release_0_1_are_read_unless_they_contradict(folder: Path, tmp_path: Path) -> None:
    before = Checkpoint(folder).config
    copy = edited(folder, tmp_path / "copy", OWN, ("llm.caption_prompt",), "x")
    (copy / OWN).write_text(json.dumps(whole(folder) | {"itm_weight": 0.5}))
    moved = replace(before.llm, source=str(copy))
    got = Checkpoint(copy).config
    assert got == replace(before, itm_weight=0.5, llm=moved, vision=replace(before.vision, weights=str(copy)))
    again = edited(copy, tmp_path / "again", *EDITS["mean"])
    with pytest.raises(
        Blip2rtError, match=r"blip2rt_config.json: vision.mean is \[0.48.*, but \[0.1, 0.2, 0.3\] by the"
    ):
        Checkpoint(again).config  # noqa: B018
