"""Texts are as likely to the native loop as to PyTorch: sums of log-softmax, by random models, texts and batches."""

import random
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.engines.native.reference import CONFIGS, POSITIONS, Case, inputs, make_case
from tests.seeds import new_seed


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(request.param, tmp_path_factory.mktemp(request.param), images=5)


def by_torch(case: Case, image: int, text: list[int]) -> float:
    """The sum of the text's log-probabilities behind an image and its prompt."""
    told = inputs(case, image, text[:-1])
    if not case.model.config.is_encoder_decoder:
        del told["input_ids"]
    with torch.no_grad():
        logits = case.model(**told).logits[0, -len(text) :].double()
    return float(logits.log_softmax(-1)[range(len(text)), text].sum())


def random_texts(rng: random.Random, case: Case, count: int, longest: int) -> list[list[int]]:
    return [[rng.randrange(len(case.texts)) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def assert_matches_torch(case: Case, images: list[int], texts: list[list[int]], atol: float = 1e-4) -> None:
    got = case.generator.likelihoods(case.prefix, case.prompts, images, texts)
    want = [by_torch(case, image, text) for image, text in zip(images, texts, strict=True)]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=atol, err_msg=f"seed {case.seed}")


def test_likelihoods_match_torch(case: Case) -> None:
    """60 texts of one image are more than the rows of a run."""
    rng = random.Random(new_seed())
    for count in (1, 2, 9, 40, 60):
        texts = random_texts(rng, case, count, 20 if count == 60 else 11)
        images = [1 if count == 60 else rng.randrange(len(case.prompts)) for _ in texts]
        assert_matches_torch(case, sorted(images) if rng.random() < 0.5 else images, texts)


def test_a_text_longer_than_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.engines.native import reference

    monkeypatch.setattr(reference, "POSITIONS", 512)
    monkeypatch.setitem(reference.SMALL, "max_position_embeddings", 512)
    case = make_case("t5", tmp_path)
    assert POSITIONS < 300, "so that the case is another"
    rng = random.Random(new_seed())
    texts = [[rng.randrange(len(case.texts)) for _ in range(length)] for length in (3, 300, 2, 140)]
    assert_matches_torch(case, [0, 0, 1, 2], texts, 1e-3)


def test_faults_are_named(case: Case) -> None:
    likelihoods = case.generator.likelihoods
    assert likelihoods(case.prefix, case.prompts, [], []) == []
    for images, texts, words in (
        ([0], [], "an image for each text"),
        ([5], [[1]], "text 0 is of an image that is not there"),
        ([0, 1], [[1], []], "text 1 has no tokens"),
        ([0], [[len(case.texts)]], "outside the vocabulary"),
        ([0], [[-1]], "outside the vocabulary"),
    ):
        with pytest.raises(RuntimeError, match=words):
            likelihoods(case.prefix, case.prompts, images, texts)
