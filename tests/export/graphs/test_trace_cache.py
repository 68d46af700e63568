"""Cached traces equal fresh ones."""

from __future__ import annotations

import numpy as np
import torch

from blip2rt_export.checks.sessions import session
from blip2rt_export.graphs import trace
from tests.tiny.trace_cache import cached_traces, structure


class Scaled(torch.nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(300, 4)
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * self.factor


def part(module: torch.nn.Module) -> trace.GraphSpec:
    return trace.GraphSpec("p", module, {"x": torch.zeros(2, 300)}, ["y"], {"x": {0: "B"}})


def test_cached_graph_gets_the_current_weights(tmp_path, monkeypatch) -> None:
    captured, whole = [], trace.capture
    monkeypatch.setattr(trace, "capture", lambda *given: captured.append(given) or whole(*given))
    x = {"x": np.random.default_rng(0).normal(size=(3, 300)).astype(np.float32)}

    def answer(module: torch.nn.Module, name: str) -> np.ndarray:
        trace.save(trace.trace(part(module)), tmp_path / f"{name}.onnx", None)
        return session(tmp_path / f"{name}.onnx", 1).run(None, x)[0]

    one, two = Scaled(2.0), Scaled(2.0)
    plain = answer(two, "plain")
    with cached_traces(tmp_path):
        answer(one, "one")
        before = len(captured)
        np.testing.assert_array_equal(answer(two, "two"), plain)
        assert len(captured) == before
        answer(Scaled(3.0), "three")
        assert len(captured) == before + 1
    assert (tmp_path / "two.onnx").read_bytes() == (tmp_path / "plain.onnx").read_bytes()


def test_any_difference_in_structure_gives_another_key() -> None:
    others = [structure(part(Scaled(2.0)), 20), structure(part(Scaled(3.0)), 20), structure(part(Scaled(2.0)), 21)]
    for change in ("shape", "table"):
        module = Scaled(2.0)
        if change == "shape":
            module.linear = torch.nn.Linear(300, 5)
        else:
            module.register_buffer("table", torch.ones(3))
        others.append(structure(part(module), 20))
    assert len(set(others)) == len(others)
    assert structure(part(Scaled(2.0)), 20) == others[0]
