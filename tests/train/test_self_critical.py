"""Captions are drawn from the distribution that the model has, and learned by their advantage."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from train.extras.self_critical import draw


@pytest.mark.parametrize("vocabulary", [2, 7, 50, 64])
def test_draws_follow_the_softmax(vocabulary: int) -> None:
    seed = random.randrange(2**31)
    print("seed", seed)
    torch.manual_seed(seed)
    logits = 2 * torch.randn(1, vocabulary)
    count = 20_000
    drawn = np.bincount(draw(logits.expand(count, -1)).numpy(), minlength=vocabulary)
    expected = count * logits.softmax(1)[0].double().numpy()
    chi_square = float(((drawn - expected) ** 2 / expected).sum())
    freedom = vocabulary - 1
    assert chi_square < freedom + 6 * (2 * freedom) ** 0.5 + 15  # about six standard deviations


def test_an_impossible_token_is_never_drawn() -> None:
    logits = torch.full((5_000, 300), float("-inf"))
    logits[:, [3, 299]] = 0.0
    assert set(draw(logits).tolist()) == {3, 299}
