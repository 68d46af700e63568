"""A short run of tests/fuzz; `make fuzz` runs longer."""

import pytest

from tests.fuzz import files
from tests.seeds import new_seed


@pytest.mark.long(7, "thousands of random calls: rare combinations crash")
@pytest.mark.parametrize("target", list(files.TARGETS))
def test_damaged_files_and_random_calls_raise_no_crash(target: str) -> None:
    pytest.importorskip("torch" if target == "checkpoint" else "onnx")
    assert files.run_random(target, seconds=2, seed=new_seed()) > 0
