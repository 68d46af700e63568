"""Results of an evaluation: measures in total and per group, and rows for the report."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .annotations import CaptionedImage, Item, VqaQuestion, VqaQuestions
from .metrics import caption_metrics, exact_match, vqa_accuracy
from .report import Row
from .truth import chair

ALL = "all"


@dataclass(frozen=True)
class Scores:
    """columns: "all", then each group's name -> measure -> value."""

    columns: dict[str, dict[str, float]]
    rows: list[Row]
    about: dict[str, Any]
    tables: dict[str, dict[str, dict[str, float]]] | None = None  # of the report, by title; None: `columns` is the one


def score_captions(items: Sequence[CaptionedImage], captions: Sequence[str]) -> Scores:
    """Return the metrics of captions, in total and per domain; all `items` must have references."""
    by_id = dict(zip((item.id for item in items), captions, strict=True))

    def metrics(part: Sequence[CaptionedImage]) -> dict[str, float]:
        references, texts = [item.references for item in part], [by_id[item.id] for item in part]
        return caption_metrics(references, texts)[0] | chair(references, texts)

    references = [item.references for item in items]
    totals, each = caption_metrics(references, captions)
    rows = [
        Row(item.path, by_id[item.id], item.references, cider, f"CIDEr {cider:.1f}", str(item.id))
        for item, cider in zip(items, each, strict=True)
    ]
    columns = {ALL: totals | chair(references, captions)} | by_group(items, metrics)
    return Scores(columns, rows, {"distinct_captions": len(set(captions))})


def score_answers(questions: VqaQuestions, answers: Sequence[str]) -> Scores:
    """Return the accuracy in per cent, in total and per type of answer; all questions must have answers."""
    grade, name = (vqa_accuracy, "accuracy") if questions.graded else (exact_match, "exact_match")
    items = questions.items
    each = {item.id: grade(answer, item.answers) for item, answer in zip(items, answers, strict=True)}

    def metrics(part: Sequence[VqaQuestion]) -> dict[str, float]:
        return {name: 100 * sum(each[item.id] for item in part) / len(part)}

    rows = [
        Row(item.path, answer, _counted(item.answers), each[item.id], f"{100 * each[item.id]:.0f} %", item.question)
        for item, answer in zip(items, answers, strict=True)
    ]
    columns = {ALL: metrics(items)} | by_group(items, metrics)
    return Scores(columns, rows, {"distinct_answers": len(set(answers))})


def _counted(answers: Sequence[str]) -> list[str]:
    """Return each answer once, with its number, the most common first."""
    return [text if count == 1 else f"{text} ({count} times)" for text, count in Counter(answers).most_common()]


def by_group(
    items: Sequence[Item], metrics: Callable[[Sequence[Item]], dict[str, float]]
) -> dict[str, dict[str, float]]:
    """Apply `metrics` to the items of each group, if there are several; an item's `group` names its group."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    return {name or "other": metrics(part) for name, part in sorted(groups.items())} if len(groups) > 1 else {}
