"""How exported graphs are compared with PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

from blip2rt_export.checks.greedy import agreement
from blip2rt_export.checks.verify import OWN_WEIGHTS, PYTORCH, compare
from tests.seeds import new_seed


def itm(*logits: tuple[float, float]) -> dict[str, np.ndarray]:
    return {"itm_logits": np.array(logits, np.float32)}


def test_itm_is_judged_by_its_logit_difference() -> None:
    """Small errors of small logits are fine, whatever their cosine; a common shift of both logits does not matter."""
    row = compare("itm", "int4", PYTORCH, itm((0.05, 0.02), (0.01, -0.02)), itm((0.01, 0.06), (-0.03, 0.02)))
    assert not row.fault and row.cosine is None
    assert row.max_abs_error == pytest.approx(0.08)
    moved = compare("itm", "fp16", PYTORCH, itm((9, 12), (9, 5)), itm((-2, 1), (1, -3)))
    assert not moved.fault and moved.max_abs_error == 0


@pytest.mark.parametrize(
    ("precision", "share"), [("fp16", 0.0141), ("int8w", 0.141), ("int8-static", 0.312), ("int4", 0.436)]
)
def test_itm_error_limit_is_a_share_of_the_logit_difference(precision: str, share: float) -> None:
    rng = np.random.default_rng(new_seed())
    for spread in (0.1, 8.0):
        want = rng.normal(0, spread, (5, 2)).astype(np.float32)
        most = share * max(float(np.sqrt(((want[:, 1] - want[:, 0]) ** 2).mean())), 1)
        for factor, good in ((0.98, True), (1.02, False)):
            got = want + np.array([0, most * factor], np.float32)
            row = compare("itm", precision, PYTORCH, {"itm_logits": got}, {"itm_logits": want})
            assert (not row.fault) is good, (precision, spread, factor)
            assert good or "the difference of itm's logits is" in row.fault


def test_agreement_is_half_about_random_texts() -> None:
    tokens, after = np.ones((2, 12), np.int64), np.ones((2, 6), np.int64)
    right, wrong = np.tile(np.array([0, 1, 0]), (2, 12, 1)), np.tile(np.array([1, 0, 0]), (2, 12, 1))
    assert agreement(tokens, right, after, right) == 1
    assert agreement(tokens, right, after, wrong) == agreement(tokens, wrong, after, right) == 0.5


def test_with_its_own_weights_every_logit_must_agree() -> None:
    want = itm((3, -2))
    assert not compare("itm", "int4", OWN_WEIGHTS, itm((3.001, -2)), want).fault
    assert compare("itm", "int4", OWN_WEIGHTS, itm((3.1, -1.9)), want).fault, "their difference is right, they are not"


def test_other_graphs_are_judged_by_cosine() -> None:
    want = {"image_embeds": np.eye(3, dtype=np.float32)}
    turned = {"image_embeds": want["image_embeds"] + np.float32(0.4)}
    row = compare("image_embed", "int4", PYTORCH, turned, want)
    assert row.cosine is not None and row.cosine < 0.95 and not row.fault
    assert "has a cosine of" in compare("image_embed", "int8w", PYTORCH, turned, want).fault
