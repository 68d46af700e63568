"""The scale of ITM's head: found again where it is known, nothing where ITM is noise; the command on a tiny model."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from blip2rt.modeling.checkpoints import load_model
from train import calibrate, stage1

from .tiny_parts import tiny_settings


@pytest.mark.parametrize("true_scale", [0.0, 0.3, 1.0])
def test_scale_of_the_distribution_that_drew_the_places_is_found(true_scale: float) -> None:
    seed = random.randrange(2**31)
    print("seed", seed)
    generator = torch.Generator().manual_seed(seed)
    itc, itm = torch.randn(2, 20000, 8, generator=generator)
    place = torch.multinomial((itc + true_scale * itm).softmax(1), 1, generator=generator).squeeze(1)
    assert calibrate.fit_scale(itc, itm, place) == pytest.approx(true_scale, abs=0.06)


def test_candidates_are_the_most_similar_and_know_the_own_image() -> None:
    sim = torch.tensor([[0.9, 0.1], [0.5, 0.2], [0.1, 0.3]])  # (images, texts)
    best, place = calibrate.candidates(sim, torch.tensor([0, 0]), 2)
    assert best.tolist() == [[0, 1], [2, 1]]
    assert place.tolist() == [0, -1]


def test_command_scales_the_head_alone(tmp_path: Path) -> None:
    assert stage1.main([*tiny_settings(tmp_path), "--out", str(tmp_path / "stage1")]) == 0
    places = ["--data", str(tmp_path / "table.tsv"), "--images", str(tmp_path / "images")]
    files = ["--features", str(tmp_path / "features"), "--out", str(tmp_path / "scaled")]
    assert calibrate.main(["--ckpt", str(tmp_path / "stage1"), *places, *files, "--rerank", "4"]) == 0
    before = load_model(tmp_path / "stage1", vision=False).state_dict()
    after = load_model(tmp_path / "scaled", vision=False).state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} <= {
        "itm_head.weight",
        "itm_head.bias",
    }
