"""Compare exported graphs in ONNX Runtime with PyTorch, and say what the comparison means.

There are two comparisons. The graph as shipped against the model as trained is reported. For weight-only integers, the
graph computing in float32 must also agree with a model that holds the very weights stored in the graph.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from blip2rt.bundle import EMBED, ENCODER, IMAGE_EMBED, ITM, ITM_LOGITS, LLM, QFORMER, TEXT_EMBED, VISION, Component

from .sessions import session

PYTORCH, OWN_WEIGHTS = "PyTorch", "its own weights"  # what a graph is compared with
ALL_GRAPHS = "all"  # component name for all graphs together, from pixels to tokens
MAX_ERROR = 1e-3  # relative to the largest value, if graph and PyTorch have the same weights
MIN_COSINE = {  # with the model as trained, where no model has the same weights
    "fp16": 0.9999,
    "int8w": 0.99,
    "int8-static": 0.95,
    "int8-dynamic": 0.95,
    "int4": 0.9,
}
SAME, SIMILAR = 0.95, 0.85  # share of greedy tokens that agree
CLOSE = 0.98  # cosine of a graph that is not to blame
_GROUPS = {VISION: "vision", QFORMER: "qformer", LLM: "llm", EMBED: "llm", ENCODER: "llm"}
_GROUPS |= dict.fromkeys((IMAGE_EMBED, TEXT_EMBED, ITM), "retrieval")
_BETTER = {"int4": "int8", **dict.fromkeys(("int8", "int8w", "int8-dynamic", "int8-static"), "fp16"), "fp16": "fp32"}

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Comparison:
    """One comparison; `fault` says what is wrong, if anything."""

    component: str
    precision: str
    against: str
    max_abs_error: float  # itm: of the difference of its two logits, which its probability depends on
    cosine: float | None  # mean over rows, of the output where it is lowest; None for itm, whose two logits have none
    agreement: float | None = None  # llm and all: share of greedy tokens equal to PyTorch's; see llm.py
    fault: str = ""


def compare(
    component: str, precision: str, against: str, got: Arrays, want: Arrays, agreement: float | None = None
) -> Comparison:
    """Compare a component's outputs by name."""
    relative = max(float(np.abs(got[n] - want[n]).max()) / max(float(np.abs(want[n]).max()), 1e-6) for n in want)
    least = MIN_COSINE.get(precision) if against == PYTORCH else None
    cosine, fault = None, ""
    if (against == OWN_WEIGHTS or precision == "fp32") and not relative <= MAX_ERROR:
        fault = f"{component} ({precision}) by {relative:.1e} of its largest value, more than {MAX_ERROR:g}"
    if component == ITM:
        differences, ours = (each[ITM_LOGITS][..., 1] - each[ITM_LOGITS][..., 0] for each in (want, got))
        errors = ours - differences
        error, rms = float(np.abs(errors).max()), _root_mean_square(errors)
        # The error of a vector with this cosine, relative to its length; for nearly equal logits, to a log-odds of 1.
        limit = float("inf") if least is None else (1 - least**2) ** 0.5 * max(_root_mean_square(differences), 1)
        if not rms <= limit:
            fault = (
                f"the difference of {component}'s logits is {rms:.2f} off (root mean square) in {precision}, "
                f"more than {limit:.2f}"
            )
    else:
        error = max(float(np.abs(got[name] - want[name]).max()) for name in want)
        cosine = min(mean_cosine(got[name], want[name]) for name in want)
        if least is not None and not cosine >= least:
            fault = f"{component} has a cosine of {cosine:.5f} in {precision}, less than {least}"
    if least is not None and fault:
        fault += ": choose another precision"
    return Comparison(component, precision, against, error, cosine, agreement, fault)


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))


def mean_cosine(got: np.ndarray, want: np.ndarray) -> float:
    """Mean cosine of the rows along the last axis."""
    left, right = got.astype(np.float64), want.astype(np.float64)
    lengths = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    return float(((left * right).sum(-1) / np.maximum(lengths, 1e-12)).mean())


def run(graph: Path, inputs: Arrays, open: Callable[[Path], Any] = session) -> dict[str, np.ndarray]:
    """Run a graph; inputs that it does not have are ignored. Return its outputs by name."""
    opened = open(graph)
    names = [value.name for value in opened.get_outputs()]
    feeds = {value.name: inputs[value.name] for value in opened.get_inputs()}
    return dict(zip(names, opened.run(names, feeds), strict=True))


@contextlib.contextmanager
def exact(graph: Path) -> Iterator[Path]:
    """Write a temporary copy of a graph that multiplies its integer matrices in float32, with unrounded activations."""
    proto = onnx.load(graph, load_external_data=False)
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1
    copy = graph.with_name(f".{graph.name}.exact")  # in the same folder, for its external data
    try:
        copy.write_bytes(proto.SerializeToString())
        yield copy
    finally:
        copy.unlink(missing_ok=True)


class Verifier:
    """Runs the graphs that were written into a folder, and compares them with PyTorch's outputs.

    open: opens a graph as its target computes. say: announces a step. enabled: otherwise nothing is compared.
    """

    def __init__(
        self, folder: Path, open: Callable[[Path], Any], say: Callable[[str], None], *, enabled: bool = True
    ) -> None:
        self.folder, self.open, self.say, self.enabled = folder, open, say, enabled
        self.components: dict[str, Component] = {}  # the written graphs
        self.comparisons: list[Comparison] = []

    def graph(self, name: str) -> Path:
        """Return the path of a graph."""
        return self.folder / f"{name}.onnx"

    def run(self, name: str, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run a graph. Return its outputs by name."""
        return run(self.graph(name), inputs, self.open)

    def add(self, name: str, against: str, got: Arrays, want: Arrays, agreement: float | None = None) -> None:
        """Compare the outputs of a graph, or of the graphs up to the language model (ALL_GRAPHS)."""
        graphs = (VISION, QFORMER, LLM) if name == ALL_GRAPHS else (name,)
        precision = "/".join(self.components[each].precision for each in graphs)
        self.comparisons.append(compare(name, precision, against, got, want, agreement))

    def compare(self, name: str, inputs: Arrays, want: Arrays) -> dict[str, np.ndarray]:
        """Compare a graph with PyTorch's outputs `want`. Return its own; empty if graphs are not compared."""
        if not self.enabled:
            return {}
        self.say(f"{name}: verifying")
        got = self.run(name, inputs)
        self.add(name, PYTORCH, got, want)
        return got

    def compare_exact(self, name: str, inputs: Arrays, want: Arrays) -> None:
        """Compare a graph, computing in float32, with PyTorch's outputs `want` of the weights that the graph stores."""
        with exact(self.graph(name)) as copy:
            self.add(name, OWN_WEIGHTS, run(copy, inputs), want)


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
    if llm.precision != "fp32" and llm.agreement is not None and llm.agreement < SAME:
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
