"""All faults of a checkpoint are reported together in one line, before a bundle is started."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.cli import main
from tests.tiny import blip2 as tiny_blip2

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wrong") / "whole"
    return tiny_blip2.generative(folder, tiny_blip2.TEXT_CONFIGS["llama"](), max_shard_size="60KB")


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def complaint(folder: Path | str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["--ckpt", str(folder), "--out", str(tmp_path / "out")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("[")]
    assert len(lines) == 1 and lines[0].startswith("blip2rt-export: error: ")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
    return lines[0]


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_missing_shards_are_all_named(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = sorted(copy.glob("model-*.safetensors"))
    shards[0].unlink()
    shards[2].write_bytes(shards[2].read_bytes()[:-5])
    line = complaint(copy, tmp_path, capsys)
    assert f"{shards[0].name} is missing" in line and f"{shards[2].name} is damaged" in line
    assert line.count(shards[0].name) == 1


def test_photograph_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line of ours: PyTorch's own goes on with how to run what a stranger's file holds."""
    line = complaint(ROOT / "docs" / "photo.jpg", tmp_path, capsys)
    assert "photo.jpg: it is damaged: it was not saved by PyTorch, or contains more than tensors" in line
    assert "weights_only" not in line


def test_missing_and_misshaped_tensors_are_named(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = ("query_tokens", "vision_model.encoder.layers.1.mlp.fc1.weight", "language_model.model.norm.weight")
    for file in copy.glob("model-*.safetensors"):
        state = {name: tensor for name, tensor in load_file(file).items() if name not in lost}
        if "language_projection.weight" in state:
            state["language_projection.weight"] = torch.zeros(3, 5)
        save_file(state, file)
    line = complaint(copy, tmp_path, capsys)
    assert all(name in line for name in lost) and "language_projection.weight is (3, 5)" in line


def test_unknown_architecture_is_named(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(copy, model_type="blip", architectures=["BlipForConditionalGeneration"])
    line = complaint(copy, tmp_path, capsys)
    assert "BlipForConditionalGeneration" in line and "Blip2ForImageTextRetrieval" in line and "LAVIS" in line


def test_unsupported_values_are_named_together(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads((copy / "config.json").read_text())
    vision = {**data["vision_config"], "hidden_act": "swish9", "num_attention_heads": 7}
    edit(copy, vision_config=vision, qformer_config={**data["qformer_config"], "hidden_act": "relu"})
    line = complaint(copy, tmp_path, capsys)
    assert "swish9" in line and "7 heads" in line and "'relu'" in line


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model_type": "blip-2", "vision_config": 3}'])
def test_damaged_config_is_named(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (copy / "config.json").write_text(text)
    assert "damaged" in complaint(copy, tmp_path, capsys)


def test_cropping_is_rejected(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = next(file for file in copy.glob("*processor_config.json") if "image_mean" in file.read_text())
    data = json.loads(file.read_text())
    data.get("image_processor", data)["do_center_crop"] = True
    file.write_text(json.dumps(data))
    assert "do_center_crop is True" in complaint(copy, tmp_path, capsys)


def test_other_files_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    assert "is not a checkpoint" in complaint(folder, tmp_path, capsys)
    (folder / "file.txt").write_text("no tensors")
    assert "damaged" in complaint(folder / "file.txt", tmp_path, capsys)
    assert "does not exist" in complaint("/no/such/folder", tmp_path, capsys)


def test_unreachable_hub_is_a_one_line_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route\n\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    line = complaint("Salesforce/blip2-opt-2.7b", tmp_path, capsys)
    assert "Salesforce/blip2-opt-2.7b" in line and "no route" in line and "folder" in line
