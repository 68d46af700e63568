"""PyTorch operators become ONNX operators that the core allows in untrusted graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from blip2rt.native import native
from blip2rt_export.checks.sessions import session
from blip2rt_export.graphs import trace
from tests.seeds import new_seed


class TokenTypes(torch.nn.Module):
    """BERT's way to the type of each position."""

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        table = torch.arange(100, 164)[None].expand(positions.shape[0], -1)
        return torch.gather(table, dim=1, index=positions) * 1.5


class Corrected(torch.nn.Module):
    """Gemma 3n's way to add to some of its predictions."""

    def __init__(self, start: int | None, end: int | None) -> None:
        super().__init__()
        self.start, self.end = start, end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        corrected = x * 2
        corrected[:, self.start : self.end] += x[:, :1]
        return corrected


def assert_equal(module: torch.nn.Module, name: str, example: torch.Tensor, given: np.ndarray, folder: Path) -> None:
    """Compare the traced graph, which the core has to allow, with the module."""
    spec = trace.GraphSpec("p", module, {name: example}, ["y"], {name: {0: "B"}})
    trace.save(trace.trace(spec), folder / "p.onnx", None)
    native.check_graph(str(folder / "p.onnx"))
    (got,) = session(folder / "p.onnx", 1).run(None, {name: given})
    np.testing.assert_allclose(got, spec.run({name: given})["y"], rtol=1e-6)


def test_gather_along_rows_is_allowed(tmp_path) -> None:
    positions = np.random.default_rng(new_seed()).integers(0, 64, (3, 5))
    assert_equal(TokenTypes(), "positions", torch.zeros(2, 5, dtype=torch.int64), positions, tmp_path)


@pytest.mark.parametrize(("start", "end"), [(1, None), (None, 2), (1, 3), (-2, -1), (0, 9)])
def test_assigning_to_a_slice_is_allowed(start: int | None, end: int | None, tmp_path) -> None:
    x = np.random.default_rng(new_seed()).normal(size=(3, 4, 6)).astype(np.float32)
    assert_equal(Corrected(start, end), "x", torch.zeros(2, 4, 6), x, tmp_path)
