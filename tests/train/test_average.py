"""The mean of two checkpoints, and what cannot be averaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from blip2rt.modeling.blip2 import Blip2Config
from blip2rt_train.extras import average


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


@pytest.mark.parametrize("weights", [["1.5"], ["1", "-1"], ["nan", "1"]])
def test_wrong_weights_are_one_line(tmp_path: Path, weights: list[str], error_of: Any) -> None:
    first = checkpoint(tmp_path / "a", w=torch.zeros(1))
    error = error_of(average.main, [first, first, "--out", tmp_path / "c", "--weights", *weights])
    assert str(float(weights[0])) in error and not (tmp_path / "c").exists()


def test_checkpoints_that_do_not_fit_are_rejected(tmp_path: Path, error_of: Any) -> None:
    """Rounded and exact weights part in a training against int4, and their mean is neither."""
    first, other = checkpoint(tmp_path / "a", w=torch.zeros(1)), checkpoint(tmp_path / "b", w=torch.zeros(2))
    rounded = checkpoint(tmp_path / "r", qformer_bits=4, w=torch.zeros(1))
    damaged = checkpoint(tmp_path / "d", w=torch.zeros(1))
    Path(damaged, "config.json").write_text('{"stage": 2')
    for second, words in (
        (other, "different models (w)"),
        (tmp_path / "none", "none"),
        (rounded, "qformer_bits is None in"),
        (damaged, f"{damaged}: its config.json is damaged"),
    ):
        assert words in error_of(average.main, [first, second, "--out", tmp_path / "c"])
    assert not (tmp_path / "c").exists()
