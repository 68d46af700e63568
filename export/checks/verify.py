"""Compare exported graphs in ONNX Runtime with PyTorch.

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
import torch

from blip2rt.bundle import ITM, ITM_LOGITS, SEQLENS_K
from blip2rt.modeling import streaming

from .sessions import session
from .stepper import Stepper, TrtStepper

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
STEPS = 12  # tokens that the llm graph generates

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Comparison:
    """One comparison; `fault` says what is wrong, if anything."""

    component: str
    precision: str
    against: str
    max_abs_error: float  # itm: of the difference of its two logits, which its probability depends on
    cosine: float | None  # mean over rows, of the output where it is lowest; None for itm, whose two logits have none
    agreement: float | None = None  # llm and all: share of greedy tokens equal to PyTorch's; see greedy.py
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


@dataclass(frozen=True)
class LlmGraphs:
    """The language model's graphs; only an encoder-decoder has `encoder` and `start`, its decoder's first token."""

    llm: Path
    embed: Path
    encoder: Path | None = None
    start: int | None = None
    open: Callable[[Path], Any] = session

    def run(self, rows: Sequence[np.ndarray], tokens: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """rows (S_b,D), continued greedily or by tokens (B,STEPS) -> tokens (B,STEPS), logits (B,STEPS,V)"""
        table, batch = self.open(self.embed), len(rows)
        padded, mask = _pad(rows)
        encoded, lengths = None, mask.sum(1)
        if self.encoder is not None:
            encoded = {
                **run(self.encoder, {"inputs_embeds": padded, "attention_mask": mask}, self.open),
                "encoder_mask": mask,
            }
            padded = table.run(None, {"token_ids": np.full((batch, 1), self.start, np.int64)})[0]
            lengths = np.ones(batch, np.int64)
        opened = self.open(self.llm)
        kind = Stepper if SEQLENS_K in {value.name for value in opened.get_inputs()} else TrtStepper
        stepper = kind(opened, batch, int(lengths.max()) + STEPS, encoded)
        logits, chosen = [stepper.prefill(padded, lengths).copy()], []
        for step in range(STEPS):
            chosen.append(logits[-1].argmax(-1) if tokens is None else tokens[:, step])
            if step + 1 < STEPS:
                ids = chosen[-1][:, None].astype(np.int64)
                logits.append(stepper.step(table.run(None, {"token_ids": ids})[0]).copy())
        return np.stack(chosen, 1), np.stack(logits, 1)


@torch.no_grad()
def llm_logits(language: Any, rows: Sequence[np.ndarray], tokens: np.ndarray, start: int | None) -> np.ndarray:
    """Return PyTorch's logits (B,STEPS,V) before each of `tokens` (B,STEPS), in one pass of a causal model.

    Rows are padded on the right, which a causal model does not see.
    """
    with streaming.streamed(language):
        if start is not None:
            padded, mask = _pad(rows)
            ids = np.concatenate((np.full((len(rows), 1), start), tokens[:, :-1]), 1)
            return language(
                inputs_embeds=torch.from_numpy(padded),
                attention_mask=torch.from_numpy(mask),
                decoder_input_ids=torch.from_numpy(ids),
                use_cache=False,
            ).logits.numpy()
        table = language.get_input_embeddings()(torch.from_numpy(tokens)).numpy()
        padded, _ = _pad([np.concatenate((row, table[b, :-1])) for b, row in enumerate(rows)])
        logits = language(inputs_embeds=torch.from_numpy(padded), use_cache=False).logits
    return np.stack([logits[b, len(row) - 1 :][:STEPS].numpy() for b, row in enumerate(rows)])


def _pad(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """rows (S_b,D) -> (B,S,D) with zeros on the right, mask (B,S) int64"""
    lengths = np.array([len(row) for row in rows])
    padded = np.zeros((len(rows), lengths.max(), rows[0].shape[1]), np.float32)
    for b, row in enumerate(rows):
        padded[b, : len(row)] = row
    return padded, (np.arange(padded.shape[1])[None] < lengths[:, None]).astype(np.int64)
