"""Exported graphs in ONNX Runtime against PyTorch.

Two comparisons: the graph as it ships with the model as it was trained, which is reported; and, for weight-only
integers, the graph computing in float32 with the model that holds the very weights which the graph stores, which must
agree.
Knows graphs and modules, nothing about checkpoints or bundles.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from .stepping import Stepper, session

PYTORCH, OWN = "PyTorch", "its own weights"  # what a graph is compared with
EXACT = 1e-3  # largest error in units of the largest value, where graph and PyTorch have the same weights
LEAST_COSINE = {
    "fp16": 0.9999,
    "int8w": 0.99,
    "int8": 0.95,
}  # with the model as trained, where no model of the same weights exists
STEPS = 12  # tokens that the llm graph is stepped through

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Row:
    """One comparison; `fault` says what is wrong, if anything."""

    component: str
    precision: str
    against: str
    max_abs_error: float
    cosine: float  # mean over rows, of the output where it is least
    note: str = ""
    fault: str = ""


def judge(component: str, precision: str, against: str, got: Arrays, want: Arrays, note: str = "") -> Row:
    """Compare outputs by name."""
    error = max(float(np.abs(got[name] - want[name]).max()) for name in want)
    relative = max(float(np.abs(got[n] - want[n]).max()) / max(float(np.abs(want[n]).max()), 1e-6) for n in want)
    cosine = min(mean_cosine(got[name], want[name]) for name in want)
    fault = ""
    if (against == OWN or precision == "fp32") and not relative <= EXACT:
        fault = f"{component} ({precision}) by {relative:.1e} of its largest value, more than {EXACT:g}"
    least = LEAST_COSINE.get(precision)
    if against == PYTORCH and least is not None and not cosine >= least:
        fault = f"{component} has a cosine of {cosine:.5f} in {precision}, less than {least}: choose another precision"
    return Row(component, precision, against, error, cosine, note, fault)


def mean_cosine(got: np.ndarray, want: np.ndarray) -> float:
    """Mean cosine of the rows along the last axis."""
    left, right = got.astype(np.float64), want.astype(np.float64)
    lengths = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    return float(((left * right).sum(-1) / np.maximum(lengths, 1e-12)).mean())


def run(graph: Path, inputs: Arrays) -> dict[str, np.ndarray]:
    """A graph's outputs by name; inputs that it does not have are left out."""
    opened = session(graph)
    names = [value.name for value in opened.get_outputs()]
    feeds = {value.name: inputs[value.name] for value in opened.get_inputs()}
    return dict(zip(names, opened.run(names, feeds), strict=True))


@contextlib.contextmanager
def exact(graph: Path) -> Iterator[Path]:
    """A passing copy of a graph, its integer matrices multiplied in float32 without rounding the activations."""
    proto = onnx.load(graph, load_external_data=False)
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1
    copy = graph.with_name(f".{graph.name}.exact")  # beside the graph, where its external data are
    try:
        copy.write_bytes(proto.SerializeToString())
        yield copy
    finally:
        copy.unlink(missing_ok=True)


@dataclass(frozen=True)
class Reference:
    """Rows continued by tokens, and PyTorch's logits before each of them."""

    rows: Sequence[np.ndarray]  # (S_b, D) each
    tokens: np.ndarray  # (B, STEPS) int64
    logits: np.ndarray  # (STEPS, B, V)


@torch.no_grad()
def llm_reference(language: Any, rows: Sequence[np.ndarray], tokens: np.ndarray | None = None) -> Reference:
    """Continue each row greedily, or by given tokens; row by row, so that no padding takes part."""
    table = language.get_input_embeddings()
    chosen, logits = [], []
    for index, row in enumerate(rows):
        embeds, ids, each = torch.from_numpy(row)[None], [], []
        for step in range(STEPS):  # no cache: its argument has another name in every release of transformers
            each.append(language(inputs_embeds=embeds, use_cache=False).logits[0, -1])
            ids.append(int(each[-1].argmax()) if tokens is None else int(tokens[index, step]))
            embeds = torch.cat((embeds, table(torch.tensor([[ids[-1]]]))), 1)
        chosen.append(ids)
        logits.append(torch.stack(each))
    return Reference(rows, np.array(chosen, np.int64), torch.stack(logits, 1).numpy())


def run_llm(llm: Path, embed: Path, reference: Reference) -> tuple[np.ndarray, float]:
    """Step the graphs along the reference's tokens: logits (STEPS,B,V), and the share of argmaxes that are the same."""
    lengths = np.array([len(row) for row in reference.rows])
    padded = np.zeros((len(lengths), lengths.max(), reference.rows[0].shape[1]), np.float32)
    for b, row in enumerate(reference.rows):
        padded[b, : len(row)] = row
    table = session(embed)
    stepper = Stepper(session(llm), len(lengths), int(lengths.max()) + STEPS)
    logits = [stepper.prefill(padded, lengths).copy()]
    for step in range(STEPS - 1):
        embeds = table.run(None, {"token_ids": reference.tokens[:, step : step + 1]})[0]
        logits.append(stepper.step(embeds).copy())
    got = np.stack(logits)
    return got, float((got.argmax(-1) == reference.logits.argmax(-1)).mean())
