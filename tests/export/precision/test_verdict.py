"""The line below an export's table: what the comparison means, and which precision to try."""

from __future__ import annotations

import re

import pytest

from blip2rt_export.arguments import ORT_PRECISIONS, TRT_PRECISIONS
from blip2rt_export.checks.verdict import verdict
from blip2rt_export.checks.verify import PYTORCH, Comparison


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


def test_verdict_names_precisions_of_the_target_only() -> None:
    assert verdict(rows(0.8, 0.9, 0.9, 0.5, "int8 fp16 int4"), TRT_PRECISIONS).endswith("try --precision llm=int8")
    assert verdict(rows(0.8, 0.9, 0.96, 0.5, "int8 fp16 int4"), TRT_PRECISIONS).endswith("vision=fp16")
