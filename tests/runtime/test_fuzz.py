"""A short run of tests/fuzz; `make fuzz` runs longer."""

from __future__ import annotations

import pytest

from tests.fuzz import files
from tests.seeds import new_seed

pytestmark = pytest.mark.long(18, "thousands of random calls: rare combinations crash")


def test_random_options_raise_no_crash() -> None:
    pytest.importorskip("onnx")
    from tests.fuzz.options import run

    assert run(seconds=4, seed=20261125) > 0


@pytest.mark.parametrize("target", ["manifest", "tokenizer", "image", "pool", "checkpoint"])
def test_damaged_files_raise_no_crash(target: str) -> None:
    if target == "checkpoint":
        pytest.importorskip("torch")
    assert files.run_random(target, seconds=2, seed=new_seed()) > 0


def test_random_operators_raise_no_crash() -> None:
    pytest.importorskip("onnx")
    from tests.fuzz.operators import run

    assert "ran " in run(seconds=4, seed=new_seed())
