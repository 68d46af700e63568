"""What an export's comparison with PyTorch means, and which precision to try if the bundle deviates much."""

from collections.abc import Mapping, Sequence

from blip2rt.bundle import EMBED, ENCODER, IMAGE_EMBED, ITM, LLM, QFORMER, TEXT_EMBED, VISION

from .verify import ALL_GRAPHS, PYTORCH, Comparison

SAME, SIMILAR = 0.95, 0.85  # share of greedy tokens that agree
CLOSE = 0.98  # cosine of a graph that is not to blame
_GROUPS = {VISION: "vision", QFORMER: "qformer", LLM: "llm", EMBED: "llm", ENCODER: "llm"}
_GROUPS |= dict.fromkeys((IMAGE_EMBED, TEXT_EMBED, ITM), "retrieval")
_BETTER = {"int4": "int8", **dict.fromkeys(("int8", "int8w", "int8-dynamic", "int8-static"), "fp16"), "fp16": "fp32"}


def verdict(rows: Sequence[Comparison], choices: Mapping[str, tuple[str, ...]]) -> str:
    """A line about the rows of a table; "" if nothing was compared. choices: precisions of each group."""
    compared = {row.component: row for row in rows if row.against == PYTORCH}
    whole = compared.get(ALL_GRAPHS)
    if not compared:
        return ""
    if whole is None or whole.agreement is None:
        worst = min((row for row in compared.values() if row.cosine is not None), key=_cosine)
        text = f"{worst.component} has a cosine of {_cosine(worst):.3f} with PyTorch's: rankings "
        return f"{text}hardly change" if _cosine(worst) >= CLOSE else f"{text}change{_fix(worst, choices)}"
    text = f"{whole.agreement:.0%} of greedy tokens agree with PyTorch's: captions "
    if whole.agreement >= SAME:
        return text + "are the same, but for near ties"
    text += "are worded differently now and then" if whole.agreement >= SIMILAR else "will differ"
    return text + _fix(_culprit(compared), choices)


def _culprit(compared: Mapping[str, Comparison]) -> Comparison:
    """The graph that costs most: the language model if it disagrees by itself, else the worst one before it."""
    llm = compared[LLM]
    before = [compared[name] for name in (VISION, QFORMER) if name in compared]
    if llm.precision != "fp32" and llm.agreement is not None and (llm.agreement < SAME or not before):
        return llm
    return min((row for row in before if row.precision != "fp32"), key=_cosine, default=llm)


def _fix(row: Comparison, choices: Mapping[str, tuple[str, ...]]) -> str:
    """The next better precision that the target has, as a clause."""
    group, precision = _GROUPS[row.component], row.precision
    while (precision := _BETTER.get(precision, "")) and precision not in choices[group]:
        pass
    return f"; try --precision {group}={precision}" if precision else ""


def _cosine(row: Comparison) -> float:
    return 1.0 if row.cosine is None else row.cosine
