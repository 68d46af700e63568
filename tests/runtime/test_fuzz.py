"""A moment of tests/fuzz.py, always the same; `make fuzz` draws fresh seeds for as long as one likes."""

from __future__ import annotations

import pytest

pytest.importorskip("onnx")

from tests.fuzz import run


def test_a_moment_of_fuzzing_finds_nothing() -> None:
    assert run(seconds=4, seed=20261125) > 0
