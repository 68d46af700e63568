"""The reward is pycocoevalcap's CIDEr, image by image."""

from __future__ import annotations

import random

import pytest

from blip2rt_train.extras.cider import CiderReward
from tests.seeds import new_seed


def test_reward_is_the_metric_of_each_image() -> None:
    scorer = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    seed = new_seed()
    rng = random.Random(seed)
    words = "a dog man runs on the grass red ball with two".split()

    def sentence() -> str:
        return " ".join(rng.choice(words) for _ in range(rng.randint(1, 9)))

    references = [[sentence() for _ in range(rng.randint(1, 5))] for _ in range(20)]
    captions = [sentence() for _ in references]
    _, expected = scorer.compute_score(dict(enumerate(references)), {i: [text] for i, text in enumerate(captions)})
    reward = CiderReward(references)
    assert [reward(i, text) for i, text in enumerate(captions)] == pytest.approx(list(expected))


def test_reward_of_unknown_words_is_zero() -> None:
    reward = CiderReward([["a dog runs"], ["a man sits"]])
    assert reward(0, "colourless green ideas") == 0.0
    assert reward(0, "") == 0.0
