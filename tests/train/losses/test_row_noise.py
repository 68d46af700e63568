"""Dropout by rows drops the right share, independently, and the same whatever surrounds a row."""

from __future__ import annotations

import torch

from blip2rt.modeling.row_noise import RowNoise
from tests.seeds import seed_of

SEED = seed_of(__name__)


def test_rows_drop_the_same_numbers_in_any_batch_and_padding() -> None:
    whole = RowNoise.of_rows(SEED, torch.arange(8)).at(3)
    part = RowNoise.of_rows(SEED, torch.arange(4, 8)).at(3)
    x = torch.randn(8, 4, 9, 7)
    torch.testing.assert_close(part.drop(x[4:, :, :5, :6], 0.3), whole.drop(x, 0.3)[4:, :, :5, :6], rtol=0, atol=0)
    rows, numbers = torch.tensor([1, 3, 3]), torch.tensor([0, 0, 1])
    copies = whole.copies(rows + 4, numbers).drop(x[:3], 0.3)
    torch.testing.assert_close(part.copies(rows, numbers).drop(x[:3], 0.3), copies, rtol=0, atol=0)
    assert torch.equal(part.order(50), whole.order(50)) and sorted(part.order(50).tolist()) == list(range(50))


def test_dropped_numbers_are_independent() -> None:
    """Of other rows, places, passes and steps; the mean stays."""
    noise, ones = RowNoise.of_rows(SEED, torch.arange(64)), torch.ones(64, 32, 48)
    others = [noise.at(1), noise.at(1).at(0), RowNoise.of_rows(SEED + 1, torch.arange(64))]
    others.append(noise.copies(torch.arange(64), torch.zeros(64)))
    for share in (0.1, 0.5):
        found = [each.drop(ones, share) for each in (noise, *others)]
        for mine in found:
            assert abs(float(mine.mean()) - 1) < 0.02
            assert torch.unique(mine).tolist() == [0, torch.tensor(1 / (1 - share))]
        masks = torch.cat([(each > 0).float().flatten(1) for each in found])  # of 5 x 64 rows
        apart = masks.corrcoef() - torch.eye(len(masks))
        assert apart.abs().max() < 0.15  # 5.9 standard deviations
        along = masks[:, 1:] - masks.mean(), masks[:, :-1] - masks.mean()
        assert abs(float((along[0] * along[1]).mean())) < 0.002
