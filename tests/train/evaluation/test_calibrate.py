"""Calibration recovers the weights that data were drawn with, and changes nothing else."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

import blip2rt
from blip2rt.bundle import read, verify
from blip2rt.image import to_pixels
from blip2rt.modeling.checkpoint import Checkpoint
from blip2rt.native import native
from blip2rt_train import stage1
from blip2rt_train.evaluation import retrieval
from blip2rt_train.evaluation.predictors import open_predictor
from blip2rt_train.evaluation.retrieval import Candidates
from blip2rt_train.extras import calibrate, probabilities
from tests.seeds import new_seed
from tests.tiny.bundle import TEXT_WORDS, Tiny, with_likelihood_weight
from tests.tiny.training import tiny_settings


def drawn(*weights: float, images: int = 8) -> tuple[list[np.ndarray], np.ndarray]:
    """Return cosine, log-odds and likelihood, one for each weight, and the right images, whose log-odds they weigh."""
    rng, shape = np.random.default_rng(0), (20_000, images)
    parts = [rng.normal(mean, spread, shape) for mean, spread in ((0.4, 0.1), (0, 3), (9, 5))][: len(weights)]
    score = sum(weight * part for weight, part in zip(weights, parts, strict=True)) + rng.gumbel(size=shape)
    return parts, score.argmax(1)


def found_by(parts: list[np.ndarray], own: np.ndarray, ways: list[str]) -> Candidates:
    cosine, log_odds, *more = parts
    places, logits = np.tile(np.arange(cosine.shape[1]), (len(own), 1)), np.stack([0 * log_odds, log_odds], -1)
    return Candidates(np.resize(ways, len(own)), places, own, cosine, logits, more[0] if more else None)


@pytest.mark.parametrize("weights", [(14.0, 1.0), (9.0, 0.15), (30.0, 0.02), (14.0, 0.2, 0.4)])
def test_fit_recovers_the_weights(weights: tuple[float, ...]) -> None:
    parts, own = drawn(*weights)
    assert calibrate.fit(parts, own) == [
        pytest.approx(weights[0], rel=0.06),
        *(pytest.approx(weight, abs=0.012) for weight in weights[1:]),
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], str]:
    """Settings of a tiny stage 1, and its checkpoint."""
    folder = tmp_path_factory.mktemp("calibrate")
    given = tiny_settings(folder)
    assert stage1.main([*given, "--out", str(folder / "out")]) == 0
    return given, str(folder / "out")


@pytest.mark.long(6, "a whole fit on a bundle")
def test_calibration_changes_only_the_weight(
    trained: tuple[list[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    given, ckpt = trained
    table, images = (given[given.index(name) + 1] for name in ("--train_table", "--images"))
    queries = []

    def candidates(predictor: Any, items: Any, count: int, asking: int, likely: bool) -> Candidates:
        found = retrieval.candidates(predictor, items, count, asking, likely)
        assert found.likelihood is None and set(found.way) == {"t2i"}
        assert found.found.shape == found.cosine.shape == found.itm_logits.shape[:2] == (len(items), count)
        assert (np.diff(found.cosine) <= 0).all() and found.own.tolist() == list(range(len(items)))
        features = predictor.vision_features([items[i].path for i in found.found[3]])
        logits = predictor.itm_logits(features, [items[3].references[0]] * count)
        np.testing.assert_allclose(found.itm_logits[3], logits, atol=1e-4)
        queries.append(len(items))
        return found_by(*drawn(9.0, 0.15, images=count), ["t2i"])

    monkeypatch.setattr(calibrate, "candidates", candidates)
    monkeypatch.setattr(calibrate, "_require_enough", lambda *given: None)
    assert calibrate.main([ckpt, "--data", table, "--images", images, "--out", str(tmp_path), "--best", "4"]) == 0
    before = sorted(Path(ckpt).glob("step-*"))[-1]
    assert queries and (tmp_path / "model.safetensors").read_bytes() == (before / "model.safetensors").read_bytes()
    temperature = load_file(before / "model.safetensors")["temperature"].item()
    old, new = (Checkpoint(folder).config for folder in (before, tmp_path))
    assert new.itm_weight == pytest.approx(0.15 / 9 / temperature, rel=0.1) and old.itm_weight == 1
    assert replace(new, itm_weight=1.0) == old
    logits, cosine = np.array([[1.0, 3.0]], np.float32), np.array([0.5], np.float32)
    scores = open_predictor(str(tmp_path)).match_weights.scores(logits, cosine)
    assert scores == pytest.approx(2 * new.itm_weight + 0.5 / temperature, rel=1e-4)
    assert "by the new score" in capsys.readouterr().out


def test_calibration_errors_are_one_line(trained: tuple[list[str], str], tmp_path: Path, error_of: Any) -> None:
    given, ckpt = trained
    table, images = (given[given.index(name) + 1] for name in ("--train_table", "--images"))
    out = ["--images", images, "--out", str(tmp_path / "out")]
    for command, words in (
        ([str(tmp_path), "--data", table], "is not a checkpoint"),
        ([ckpt, "--data", table], "8 images with captions, of which 50 are needed: give more"),
        ([ckpt, "--data", table, "--best", "1"], "best is 1"),
        ([ckpt, "--data", str(tmp_path / "absent.tsv")], "does not exist"),
        ([ckpt, "--data", table, "--images", str(tmp_path)], "does not exist"),
    ):
        line = error_of(calibrate.main, [*command[:1], *out, *command[1:]])
        assert words in line and not (tmp_path / "out").exists(), line


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """A table of 60 random pictures, each with a caption of its own, and calibrate's options for it."""
    rng = np.random.default_rng(new_seed())
    words = [word for word in TEXT_WORDS if word.isalpha()]
    lines = ["image\tcaption"]
    for i, caption in enumerate(rng.permutation(list(itertools.product(words, repeat=3)))[:60]):
        Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png\t{' '.join(caption)}")
    (tmp_path / "table.tsv").write_text("\n".join(lines) + "\n")
    return ["--data", str(tmp_path / "table.tsv"), "--images", str(tmp_path)]


def test_bundle_gets_both_weights(
    tiny: Tiny, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def candidates(predictor: Any, items: Any, count: int, asking: int, likely: bool) -> Candidates:
        found = retrieval.candidates(predictor, items, count, asking, likely)
        assert found.likelihood is not None and found.likelihood.shape == found.cosine.shape == (120, 60)
        paths, texts = [item.path for item in items], [item.references[0] for item in items]
        features = predictor.vision_features([paths[i] for i in found.found[3]])
        want = predictor.likelihoods(features, [texts[3]] * count)
        np.testing.assert_allclose(found.likelihood[3], want, atol=1e-4)
        want = predictor.likelihoods(predictor.vision_features([paths[7]] * count), [texts[j] for j in found.found[67]])
        np.testing.assert_allclose(found.likelihood[67], want, atol=1e-4)
        assert found.way.tolist() == ["t2i"] * 60 + ["i2t"] * 60 and found.own.tolist() == [*range(60)] * 2
        return found_by(*drawn(14.0, 0.2, 0.4), ["t2i", "i2t"])

    monkeypatch.setattr(calibrate, "candidates", candidates)
    monkeypatch.setattr(calibrate, "_require_enough", lambda *given: None)
    out = tmp_path / "out"
    assert calibrate.main([str(tiny.path), *pictures, "--out", str(out), "--best", "60"]) == 0
    assert "likelihood_weight 0 -> " in capsys.readouterr().out
    verify(out)
    old, new = (read(path).manifest for path in (tiny.path, out))
    assert old.retrieval is not None and new.retrieval is not None
    temperature = old.retrieval.temperature
    assert new.retrieval.itm_weight == pytest.approx(0.2 / 14 / temperature, rel=0.1)
    assert new.retrieval.likelihood_weight == pytest.approx(0.4 / 14 / temperature, rel=0.1)
    assert new.files is not None and old.files is not None
    new_file = {calibrate.MEAN_PREFIX: new.files[calibrate.MEAN_PREFIX]}
    weights = {"itm_weight": new.retrieval.itm_weight, "likelihood_weight": new.retrieval.likelihood_weight}
    retrieval_spec = replace(old.retrieval, **weights, mean_prefix=calibrate.MEAN_PREFIX)
    assert new == replace(old, retrieval=retrieval_spec, files={**old.files, **new_file})
    pixels = to_pixels([str(tmp_path / f"{i}.png") for i in range(60)], old.image)
    mean = np.fromfile(out / calibrate.MEAN_PREFIX, np.float32).reshape(3, 16)
    np.testing.assert_allclose(mean, tiny.prefix(tiny.vision(pixels)).mean(0), atol=1e-4)
    match, plain = (blip2rt.load(path, threads=1).match(tmp_path / "1.png", "a dog") for path in (out, tiny.path))
    log_odds = np.log(plain.probability / (1 - plain.probability))
    want = plain.cosine / temperature + new.retrieval.itm_weight * log_odds
    assert match.score == pytest.approx(want + new.retrieval.likelihood_weight * match.likelihood, abs=1e-3)


def test_unlikely_texts_do_not_lower_the_likelihood_weight() -> None:
    rng = np.random.default_rng(3)
    cosine, likelihood = rng.normal(0.4, 0.1, (4000, 8)), rng.normal(9, 5, (4000, 8))
    own = (14 * cosine + 0.4 * likelihood + rng.gumbel(size=cosine.shape)).argmax(1)
    likelihood[np.arange(200), own[:200]] -= 40
    logits, way = np.zeros((4000, 8, 2)), np.full(4000, "t2i")
    found = Candidates(way, np.tile(np.arange(8), (4000, 1)), own, cosine, logits, likelihood)
    scale, _, fitted = calibrate.fit([cosine, logits[..., 0], likelihood], own)
    weights = calibrate.weigh(found, own, 1.0)
    assert weights.likelihood > 1.4 * fitted / scale
    right = weights.scores(logits, cosine, likelihood).argmax(1) == own
    assert right.sum() > ((cosine + fitted / scale * likelihood).argmax(1) == own).sum()


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
    old, new = read(source).manifest, verify(tmp_path / "out").manifest
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
    assert read(tmp_path / "out").manifest.calibration is None
