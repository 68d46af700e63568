"""The tests' own memory of traced graphs gives what tracing gives."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from export.checks.stepping import session
from export.graphs import trace
from tests.tiny.traced import content, traced_once


class Scaled(torch.nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(300, 4)
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * self.factor


def part(module: torch.nn.Module) -> trace.Part:
    return trace.Part("p", module, {"x": torch.zeros(2, 300)}, ["y"], {"x": {0: "B"}})


def test_a_known_graph_is_what_was_traced_and_another_is_traced(tmp_path, monkeypatch) -> None:
    traced, whole = [], trace.trace
    monkeypatch.setattr(trace, "trace", lambda *given: traced.append(given) or whole(*given))
    x = {"x": np.random.default_rng(0).normal(size=(3, 300)).astype(np.float32)}

    def answer(module: torch.nn.Module, name: str) -> np.ndarray:
        trace.save(trace.trace(part(module)), tmp_path / f"{name}.onnx", None)
        return session(tmp_path / f"{name}.onnx", 1).run(None, x)[0]

    module = Scaled(2.0)
    same = Scaled(2.0)
    same.load_state_dict(module.state_dict())
    with traced_once():
        first = answer(module, "first")
        before = len(traced)
        module.linear.weight.data.add_(1)  # what is kept is not the module's
        assert np.array_equal(answer(same, "again"), first) and len(traced) == before
        assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "first.onnx").read_bytes()
        moved = answer(module, "moved")
        assert len(traced) == before + 1 and np.abs(moved - first).max() > 0.1
    np.testing.assert_allclose(moved, part(module).run(x)["y"], atol=1e-4)


def test_a_setting_makes_another_graph() -> None:
    one, two = Scaled(2.0), Scaled(3.0)
    two.load_state_dict(one.state_dict())
    assert content(part(one), 20) != content(part(two), 20) != content(part(two), 21)
