"""What the matching head weighs against the contrast: as much as data were drawn with, and only that changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from blip2rt.modeling.checkpoints import read_config
from train import stage1
from train.evaluation import retrieval
from train.evaluation.predictors import open_predictor
from train.evaluation.retrieval import Candidates
from train.extras import calibrate

from ..tiny.parts import tiny_settings


def drawn(a: float, b: float, texts: int = 20_000, images: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """cosine, log_odds and own, whose likelihood a and b are."""
    rng = np.random.default_rng(0)
    cosine, log_odds = rng.normal(0.4, 0.1, (texts, images)), rng.normal(0, 3, (texts, images))
    own = (a * cosine + b * log_odds + rng.gumbel(size=cosine.shape)).argmax(1)
    return cosine, log_odds, own


@pytest.mark.parametrize(("a", "b"), [(14.0, 1.0), (9.0, 0.15), (30.0, 0.02)])
def test_the_numbers_are_found_that_texts_were_drawn_with(a: float, b: float) -> None:
    cosine, log_odds, own = drawn(a, b)
    assert calibrate.fit([cosine, log_odds], own) == [pytest.approx(a, rel=0.06), pytest.approx(b, abs=0.012)]


def test_three_numbers_are_found() -> None:
    rng = np.random.default_rng(1)
    parts = [rng.normal(0.4, 0.1, (20_000, 8)), rng.normal(0, 3, (20_000, 8)), rng.normal(-20, 5, (20_000, 8))]
    own = (14 * parts[0] + 0.2 * parts[1] + 0.4 * parts[2] + rng.gumbel(size=parts[0].shape)).argmax(1)
    assert calibrate.fit(parts, own) == [pytest.approx(want, rel=0.08) for want in (14, 0.2, 0.4)]


def test_a_head_that_is_wrong_has_no_weight() -> None:
    cosine, log_odds, own = drawn(14.0, 1.0)
    assert calibrate.fit([cosine, -log_odds], own)[1] < 1e-3


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], str]:
    """Settings of a tiny stage 1, and its checkpoint."""
    folder = tmp_path_factory.mktemp("calibrate")
    given = tiny_settings(folder)
    assert stage1.main([*given, "--out", str(folder / "out")]) == 0
    return given, str(folder / "out")


def test_only_the_weight_changes(
    trained: tuple[list[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    given, ckpt = trained
    table, images = (given[given.index(name) + 1] for name in ("--train_table", "--images"))
    asked = []

    def candidates(predictor: Any, items: Any, count: int, likely: bool) -> Candidates:
        found = retrieval.candidates(predictor, items, count, likely)
        assert found.likelihood is None
        assert found.images.shape == found.cosine.shape == found.itm_logits.shape[:2] == (len(items), count)
        assert (np.diff(found.cosine) <= 0).all() and found.own.tolist() == list(range(len(items)))
        features = predictor.vision_features([items[i].path for i in found.images[3]])
        logits = predictor.itm_logits(features, [items[3].references[0]] * count)
        np.testing.assert_allclose(found.itm_logits[3], logits, atol=1e-4)
        asked.append(len(items))
        cosine, log_odds, own = drawn(9.0, 0.15, images=count)
        places = np.tile(np.arange(count), (len(own), 1))
        return Candidates(places, own, cosine, np.stack([0 * log_odds, log_odds], -1), None)

    monkeypatch.setattr(calibrate, "candidates", candidates)
    assert calibrate.main([ckpt, "--data", table, "--images", images, "--out", str(tmp_path), "--best", "4"]) == 0
    before = sorted(Path(ckpt).glob("step-*"))[-1]
    assert asked and (tmp_path / "model.safetensors").read_bytes() == (before / "model.safetensors").read_bytes()
    temperature = load_file(before / "model.safetensors")["temperature"].item()
    old, new = (read_config(folder) for folder in (before, tmp_path))
    assert new.itm_weight == pytest.approx(0.15 / 9 / temperature, rel=0.1) and old.itm_weight == 1
    assert replace(new, itm_weight=1.0) == old
    logits, cosine = np.array([[1.0, 3.0]], np.float32), np.array([0.5], np.float32)
    scores = open_predictor(str(tmp_path)).match_weights.scores(logits, cosine)
    assert scores == pytest.approx(2 * new.itm_weight + 0.5 / temperature, rel=1e-4)
    assert "by the new score" in capsys.readouterr().out
    wrong = calibrate.candidates

    def upside_down(*given: Any) -> Candidates:
        found = wrong(*given)
        return Candidates(found.images, found.own, found.cosine, -found.itm_logits, None)

    monkeypatch.setattr(calibrate, "candidates", upside_down)
    out = tmp_path / "wrong"
    assert calibrate.main([ckpt, "--data", table, "--images", images, "--out", str(out), "--best", "4"]) == 2
    assert "rank by Match.cosine" in capsys.readouterr().err and not out.exists()


def test_what_it_cannot_do_is_one_line(trained: tuple[list[str], str], tmp_path: Path, capsys: Any) -> None:
    given, ckpt = trained
    table, images = (given[given.index(name) + 1] for name in ("--train_table", "--images"))
    out = ["--images", images, "--out", str(tmp_path / "out")]
    for command, words in (
        ([str(tmp_path), "--data", table], "no checkpoint"),
        ([ckpt, "--data", table], "50 or more"),
        ([ckpt, "--data", table, "--best", "1"], "best is 1"),
        ([ckpt, "--data", str(tmp_path / "absent.tsv")], "does not exist"),
        ([ckpt, "--data", table, "--images", str(tmp_path)], "are not in"),
    ):
        assert calibrate.main([*command[:1], *out, *command[1:]]) == 2, command
        [line] = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
        assert words in line and not (tmp_path / "out").exists(), line
