"""`python -m benchmarks.count_step`: what a step launches and reads, of graphs whose operators are known."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")

from benchmarks import count_step
from tests.seeds import seed_of
from tests.tiny import trt as tiny_trt


def test_products_and_bytes_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """q, k, v and output of each layer and the head; scores with past and new keys, and values, or an Attention."""
    weights = tiny_trt.weights_of(np.random.default_rng(seed_of(__name__)))
    both = [tiny_trt.write(tmp_path / name, weights, "trt", in_place=name == "native") for name in ("trt", "native")]
    plain, native = map(count_step.count, both)
    layers = tiny_trt.LAYERS
    assert plain.of_weights == native.of_weights == 4 * layers + 1
    assert (plain.of_attention, plain.attention) == (3 * layers, 0)
    assert (native.of_attention, native.attention) == (0, layers)
    read = sum(array.nbytes for name, array in weights.items() if name not in ("embed", "positions"))
    assert read <= plain.read < 1.01 * read and plain.embed == weights["embed"].nbytes
    monkeypatch.setattr(sys, "argv", ["count_step", *map(str, both)])
    assert count_step.main() == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| trt |", "| native |"))]
    assert len(rows) == 2 and f"| {plain.operators} | {7 * layers + 1} |" in rows[0]
