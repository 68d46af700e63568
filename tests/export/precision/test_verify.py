"""How exported graphs are compared with PyTorch."""

import re

import numpy as np
import pytest

from blip2rt_export.arguments import ORT_PRECISIONS
from blip2rt_export.checks.llm import agreement
from blip2rt_export.checks.verify import PYTORCH, Comparison, compare, verdict
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
    ("precision", "share"), [("fp16", 0.0141), ("int8w", 0.141), ("int8-dynamic", 0.312), ("int4", 0.436)]
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


def test_other_graphs_are_judged_by_cosine() -> None:
    want = {"image_embeds": np.eye(3, dtype=np.float32)}
    turned = {"image_embeds": want["image_embeds"] + np.float32(0.4)}
    row = compare("image_embed", "int4", PYTORCH, turned, want)
    assert row.cosine is not None and row.cosine < 0.95 and not row.fault
    assert "has a cosine of" in compare("image_embed", "int8w", PYTORCH, turned, want).fault


def rows(
    vision: float, qformer: float, llm: float, whole: float, precisions: str = "int8w int4 int4"
) -> list[Comparison]:
    """Cosines of the graphs before the language model, and shares of tokens that agree."""
    first, second, third = precisions.split()
    return [
        Comparison("vision", first, PYTORCH, 0.1, vision),
        Comparison("qformer", second, PYTORCH, 0.1, qformer),
        Comparison("llm", third, PYTORCH, 0.1, 0.9, llm),
        Comparison("all", "", PYTORCH, 0.1, 0.9, whole),
    ]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (rows(0.99, 0.99, 0.97, 0.96), "96% of greedy tokens agree with PyTorch's: captions are the same"),
        (rows(0.99, 0.99, 0.60, 0.61), "61% of greedy tokens .*: captions will differ; try .*llm=int8$"),
        (rows(0.99, 0.90, 0.97, 0.90), "worded differently now and then; try --precision qformer=int8$"),
        (rows(0.80, 0.90, 0.97, 0.50), "captions will differ; try --precision vision=fp16$"),
        (rows(0.80, 0.90, 1.00, 0.50, "fp32 fp32 fp32"), "captions will differ$"),
        (rows(0.80, 0.90, 0.97, 0.50, "fp32 int4 int4"), "captions will differ; try --precision qformer=int8$"),
        (
            [Comparison("itm", "int4", PYTORCH, 0.1, None), Comparison("text_embed", "int4", PYTORCH, 0.1, 0.93)],
            "text_embed has a cosine of 0.930 with PyTorch's: rankings change; try --precision retrieval=int8$",
        ),
        ([Comparison("vision", "fp16", PYTORCH, 0.1, 0.999)], "rankings hardly change$"),
        ([Comparison("llm", "int4", "its own weights", 0.1, 1.0)], "^$"),
    ],
)
def test_verdict_names_the_part_that_costs_most(table: list[Comparison], said: str) -> None:
    assert re.search(said, verdict(table, ORT_PRECISIONS)), verdict(table, ORT_PRECISIONS)
