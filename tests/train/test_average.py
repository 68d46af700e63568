"""The mean of two checkpoints, and what cannot be averaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from blip2rt.modeling.blip2 import Blip2Config
from train.extras import average


def checkpoint(folder: Path, qformer_bits: int | None = None, **tensors: torch.Tensor) -> str:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(Blip2Config(qformer_bits=qformer_bits).to_json()))
    return str(folder)


def test_average_of_every_tensor(tmp_path: Path) -> None:
    tensors = {name: torch.randn(3, 4) for name in "abc"}
    sources = [checkpoint(tmp_path / name, w=tensor) for name, tensor in tensors.items()]
    assert average.main([*sources[:2], "--out", str(tmp_path / "d"), "--weights", "3", "7"]) == 0
    assert average.main([*sources, "--out", str(tmp_path / "e")]) == 0
    weighted, alike = (load_file(tmp_path / name / "model.safetensors")["w"] for name in "de")
    torch.testing.assert_close(weighted, 0.3 * tensors["a"] + 0.7 * tensors["b"])
    torch.testing.assert_close(alike, sum(tensors.values()) / 3)
    assert (tmp_path / "e" / "config.json").read_text() == (tmp_path / "a" / "config.json").read_text()


@pytest.mark.parametrize("weights", [["1.5"], ["1", "-1"], ["0", "0"], ["1", "2", "3"], ["nan", "1"]])
def test_wrong_weights_are_one_line(tmp_path: Path, weights: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    first = checkpoint(tmp_path / "a", w=torch.zeros(1))
    assert average.main([first, first, "--out", str(tmp_path / "c"), "--weights", *weights]) == 2
    assert str(float(weights[0])) in capsys.readouterr().err and not (tmp_path / "c").exists()


def test_other_models_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = checkpoint(tmp_path / "a", w=torch.zeros(1)), checkpoint(tmp_path / "b", w=torch.zeros(2))
    assert average.main([first, second, "--out", str(tmp_path / "c")]) == 2
    assert average.main([first, str(tmp_path / "none"), "--out", str(tmp_path / "c")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "different models (w)" in lines[0] and not (tmp_path / "c").exists()


def test_other_rounding_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rounded and exact weights part in a training against int4, and their mean is neither."""
    exact = checkpoint(tmp_path / "a", w=torch.zeros(1))
    rounded = checkpoint(tmp_path / "b", qformer_bits=4, w=torch.zeros(1))
    assert average.main([exact, rounded, "--out", str(tmp_path / "c")]) == 2
    assert "qformer_bits is None in" in capsys.readouterr().err and not (tmp_path / "c").exists()


def test_damaged_config_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = checkpoint(tmp_path / "a", w=torch.zeros(1)), checkpoint(tmp_path / "b", w=torch.zeros(1))
    Path(second, "config.json").write_text('{"stage": 2')
    assert average.main([first, second, "--out", str(tmp_path / "c")]) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert f"{second}: its config.json is damaged" in error and not (tmp_path / "c").exists()
