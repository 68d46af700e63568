"""Probabilities are fitted on what captions and questions say, and a calibrated bundle uses them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import blip2rt
from blip2rt import bundle as contract
from blip2rt.native import native
from blip2rt_train.extras import calibrate, probabilities
from tests.seeds import new_seed
from tests.tiny.bundle import Tiny, with_likelihood_weight


def test_logistic_regression_recovers_the_weights() -> None:
    rng = np.random.default_rng(0)
    columns = rng.normal((3, -1), (0.2, 5), (40_000, 2))
    odds = columns @ (4.0, 0.3) - 11
    right = rng.random(len(odds)) < 1 / (1 + np.exp(-odds))
    assert probabilities.fit_logistic(columns, right, False, 0) == pytest.approx([4.0, 0.3, -11], rel=0.06)
    *weights, bias = probabilities.fit_logistic(columns, right, True, 0)
    assert weights == pytest.approx([4.0, 0.3], rel=0.06)
    assert bias == pytest.approx(-11 - np.log(right.mean() / (1 - right.mean())), rel=0.06), "as if half were right"


def test_labels_are_named_by_any_of_their_words() -> None:
    told = ["Two puppies are running across the grass", "a brown dog plays"]
    labels = native.Labels.everyday()
    named = [name for (name, _, _), there in zip(labels.entries, labels.named_in(told), strict=True) if there]
    assert sorted(named) == ["dog", "grass"]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], list[str]]:
    """Write 24 random pictures with captions and, if asked, questions; return calibrate's options for them."""
    monkeypatch.setattr(probabilities, "_MIN_EXAMPLES", 3)
    rng = np.random.default_rng(new_seed())
    captions = ["a dog on the grass", "a red cat", "the cat sits in the water", "a man runs"]

    def write(asked: bool) -> list[str]:
        lines = ["image\tcaption\tprompt"]
        for i in range(24):
            Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
            lines.append(f"{i}.png\t{captions[i % 4]}\t")
            for question in ("is there a dog?", "are there cats in the photo?", "is the dog running?") if asked else ():
                lines.append(f"{i}.png\t{rng.choice(['yes', 'no'])}\t{question}")
            lines += [f"{i}.png\t{'red' if i % 3 else 'blue'}\tHow many dogs are there?"] if asked else []
        (tmp_path / "table.tsv").write_text("\n".join(lines) + "\n")
        return ["--data", str(tmp_path / "table.tsv"), "--images", str(tmp_path), "--out", str(tmp_path / "out")]

    return write


def test_a_bundle_gets_probabilities(
    tiny: Tiny, table: Callable[[bool], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(probabilities, "coco_scorers", lambda: None)
    monkeypatch.setattr(
        probabilities, "caption_metrics", lambda told, own: ({}, [60.0 * ("dog" in each[0]) for each in told])
    )
    source = with_likelihood_weight(tiny, tmp_path / "source", 0.4)
    assert calibrate.main([str(source), *table(True), "--keep-score"]) == 0
    summary = capsys.readouterr().out
    assert all(f"wrong {what}; by a fit" in summary for what in ("phrases", "sentences", "statements", "labels"))
    assert "48 wrong sentences" in summary and "itm_weight" not in summary
    assert "24 questions of a number; the likeliest of red, blue is right for " in summary
    old, new = contract.read(source).manifest, contract.verify(tmp_path / "out").manifest
    assert new.calibration is not None and replace(new, calibration=None) == old
    assert {"yes", "yes_blind", "name_cosine", "query_0"} <= set(new.calibration.phrase.weights)  # type: ignore[union-attr]
    assert new.calibration.numbers == ("red", "blue") and new.calibration.statement is not None
    assert {"cosine", "itm", "likelihood", "subject_cosine"} == set(new.calibration.statement.weights)
    model, image = blip2rt.load(tmp_path / "out", threads=1), tmp_path / "3.png"
    assert model.ask(image, "How many cats are there?") in (*new.calibration.numbers, "none")
    assert model.ask(image, "is the dog running?") in ("yes", "no")
    match = model.match(image, "a dog")
    assert match.probability != match.itm and model.sees(image, "a dog") == (match.probability > 0.5)
    assert len(model.tag(image, threshold=0)) == 10
    assert 0 < (model.caption(image, scores=True).confidence or 0) < 1


def test_without_questions_only_the_score_is_fitted(
    tiny: Tiny, table: Callable[[bool], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert calibrate.main([str(tiny.path), *table(False), "--keep-score"]) == 2
    assert "--keep-score leaves only probabilities to fit, and " in capsys.readouterr().err
    monkeypatch.setattr(calibrate, "_require_enough", lambda *given: None)
    monkeypatch.setattr(calibrate, "_learn", lambda *given: (blip2rt.load(tiny.path).match_weights, "weights"))
    assert calibrate.main([str(tiny.path), *table(False)]) == 0
    assert "so probabilities were not fitted" in capsys.readouterr().out
    assert contract.read(tmp_path / "out").manifest.calibration is None
