"""Match.score weighs how likely the language model finds a text, where the bundle says so: against numpy; the doors."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import blip2rt
from blip2rt import cli
from blip2rt.errors import BundleError, CapabilityError, OptionError
from blip2rt.image import to_pixels
from blip2rt.native import native
from tests.tiny.bundle import EOS, WORDS, D, Q, Tiny, with_likelihood_weight, write_bundle

WEIGHT = 0.37
TEXTS = ["a dog", "the red cat sits on the grass", "water", "a dog", "the man runs in the blue water on red grass", "a"]


@pytest.fixture
def model(tiny: Tiny, tmp_path: Path) -> blip2rt.Model:
    return blip2rt.load(with_likelihood_weight(tiny, tmp_path / "weighs", WEIGHT), threads=1)


def log_likelihood(tiny: Tiny, prefix: np.ndarray, text: str, prompt: str = "", most: int = 6) -> float:
    """log p(text and its end | prefix, prompt), in numpy."""
    given = [WORDS.index(word) for word in prompt.split()]
    ids = [*[WORDS.index(word) for word in text.split()][: most - 1], EOS]
    total = 0.0
    for i, token in enumerate(ids):
        logits = tiny.logits(np.concatenate([prefix, tiny.weights["embed"][given + ids[:i]]])).astype(np.float64)
        total += logits[token] - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    return total


def gain(tiny: Tiny, model: blip2rt.Model, image: np.ndarray, text: str, prompt: str = "") -> float:
    """Match.likelihood, in numpy."""
    prefix = tiny.prefix(tiny.vision(to_pixels([image], model.bundle.manifest.image)))[0]
    mean = np.fromfile(model.bundle.file("mean_prefix.data"), np.float32).reshape(Q, D)
    return log_likelihood(tiny, prefix, text, prompt) - log_likelihood(tiny, mean, text, prompt)


def test_likelihood_equals_numpy(tiny, model, photo):
    images = [photo(*size) for size in [(5, 7), (20, 30), (8, 12), (1, 1), (40, 3), (9, 9)]]
    images, texts = [*images, images[0]], [*TEXTS, "water"]  # the first image again, apart from itself
    for match, image, text in zip(model.match(images, texts), images, texts, strict=True):
        assert match.likelihood == pytest.approx(gain(tiny, model, image, text), abs=1e-3)


def test_the_caption_prompt_precedes_the_text(tiny, tmp_path, photo):
    model, image = blip2rt.load(with_likelihood_weight(tiny, tmp_path, WEIGHT, caption="a man"), threads=1), photo(5, 9)
    wanted = gain(tiny, model, image, "runs on water", "a man")
    assert model.match(image, "runs on water").likelihood == pytest.approx(wanted, abs=1e-3)


def test_the_score_includes_the_likelihood(tiny, model, photo):
    images = [photo(5, 7), photo(6, 6)]
    plain = blip2rt.load(tiny.path, threads=1)
    for new, old in zip(model.match(images, TEXTS[:2]), plain.match(images, TEXTS[:2]), strict=True):
        assert old.likelihood is None and new.likelihood is not None
        assert (new.probability, new.cosine) == pytest.approx((old.probability, old.cosine), abs=1e-6)
        assert new.score == pytest.approx(old.score + WEIGHT * new.likelihood, abs=1e-4)
    features = model.vision_features(images)
    likelihoods, logits = model.likelihoods(features, TEXTS[:2]), model.itm_logits(features, TEXTS[:2])
    with pytest.raises(CapabilityError, match="it lacks retrieval.mean_prefix; blip2rt-train calibrate adds it"):
        plain.likelihoods(features, TEXTS[:2])
    cosine = np.array([match.cosine for match in model.match(images, TEXTS[:2])], np.float32)
    want = [match.score for match in model.match(images, TEXTS[:2])]
    assert model.match_scores(logits, cosine, likelihoods) == pytest.approx(want, abs=1e-4)
    with pytest.raises(OptionError, match="likelihood is missing"):
        model.match_scores(logits, cosine)


def test_a_weight_of_zero_skips_the_language_model(tiny, photo, monkeypatch):
    model = blip2rt.load(tiny.path, threads=1)
    monkeypatch.setattr(model.pipeline.backend, "generator", lambda: pytest.fail("it was opened"))
    assert model.match(photo(), "a dog").likelihood is None


def test_the_likelihood_cache_is_bounded(tiny, model, photo):
    pipeline = model.pipeline
    pipeline.judge = judge = native.Judge(model.bundle, pipeline.backend, lambda: pipeline.language.core, kept_values=3)
    image = photo(8, 8)
    for texts in (TEXTS[:2], TEXTS[2:6], TEXTS, TEXTS[:1]):
        want = [gain(tiny, model, image, text) for text in texts]
        assert [match.likelihood for match in model.match(image, texts)] == pytest.approx(want, abs=1e-3)
        assert 0 < judge.kept_values <= 3


def test_the_command_prints_the_likelihood(tiny, model, photo, tmp_path, capsys):
    Image.fromarray(photo(9, 7)).save(tmp_path / "a.png")
    match = model.match(tmp_path / "a.png", "a dog")
    command = ["match", str(tmp_path / "a.png"), "a dog", "--model", str(model.bundle.path)]
    assert cli.main(command) == 0
    assert capsys.readouterr().out.endswith(f"  likelihood {match.likelihood:6.2f}\n")
    assert cli.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["likelihood"] == pytest.approx(match.likelihood, abs=1e-4)
    assert cli.main([*command[:-1], str(tiny.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["likelihood"] is None


def test_faults_are_named(tiny, tmp_path, photo):
    for weight in (-1, 1e5):
        with pytest.raises(BundleError, match="retrieval.likelihood_weight is"):
            blip2rt.load(with_likelihood_weight(tiny, tmp_path / str(weight), weight))
    write_bundle(tmp_path / "matches", tiny.weights, generative=False)
    alone = replace(tiny, path=tmp_path / "matches")
    with pytest.raises(BundleError, match="without a language model or"):
        blip2rt.load(with_likelihood_weight(alone, tmp_path / "weighs", WEIGHT))
    path = with_likelihood_weight(tiny, tmp_path / "files", WEIGHT)
    manifest = json.loads((path / "blip2rt.json").read_text())
    (path / "mean_prefix.data").write_bytes(b"1234")
    manifest["files"]["mean_prefix.data"]["size"] = 4
    (path / "blip2rt.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="mean_prefix.data is not of 3 x 16 float32"):
        blip2rt.load(path)
    manifest["retrieval"]["mean_prefix"] = None
    (path / "blip2rt.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="or retrieval.mean_prefix"):
        blip2rt.load(path)
    matches = blip2rt.load(alone.path)
    assert matches.match(photo(), "a dog").likelihood is None
    with pytest.raises(CapabilityError, match="cannot tell how likely a text is: it lacks qformer"):
        matches.likelihoods(matches.vision_features([photo()]), ["a dog"])
