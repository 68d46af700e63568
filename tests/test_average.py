"""The mean of two checkpoints, and what cannot be averaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from train import average


def checkpoint(folder: Path, **tensors: torch.Tensor) -> str:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return str(folder)


def test_mean_of_every_tensor(tmp_path: Path) -> None:
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    first, second = checkpoint(tmp_path / "a", w=a), checkpoint(tmp_path / "b", w=b)
    assert average.main([first, second, "--share", "0.7", "--out", str(tmp_path / "c")]) == 0
    torch.testing.assert_close(load_file(tmp_path / "c" / "model.safetensors")["w"], 0.3 * a + 0.7 * b)
    assert (tmp_path / "c" / "config.json").read_text() == "{}"


@pytest.mark.parametrize("arguments", [["--share", "1.5"], ["--share", "-0.1"]])
def test_wrong_shares(tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    first = checkpoint(tmp_path / "a", w=torch.zeros(1))
    assert average.main([first, first, "--out", str(tmp_path / "c"), *arguments]) == 2
    assert arguments[1] in capsys.readouterr().err and not (tmp_path / "c").exists()


def test_other_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = checkpoint(tmp_path / "a", w=torch.zeros(1)), checkpoint(tmp_path / "b", w=torch.zeros(2))
    assert average.main([first, second, "--out", str(tmp_path / "c")]) == 2
    assert average.main([first, str(tmp_path / "none"), "--out", str(tmp_path / "c")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "different models: w" in lines[0] and not (tmp_path / "c").exists()
