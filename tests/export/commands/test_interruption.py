"""export, convert, train and bench die at any moment, or meet a full disk: what was there, or what is new, is whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("onnxscript")

from tests.seeds import new_seed

pytestmark = [
    pytest.mark.long(20),
    pytest.mark.skipif(sys.platform != "linux", reason="forks, and kills what it forked"),
]

ROOT = Path(__file__).parents[3]


def ended(what: str, command: str, count: int) -> str:
    """tests/tiny/interruption.py in a process of its own; what it did."""
    words = ["-m", "tests.tiny.interruption", what, command, str(count), str(new_seed())]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, f"{words}: {done.stdout[-1000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", ["export", "convert", "train", "bench"])
def test_fifty_kills_leave_the_old_or_the_new(command: str) -> None:
    assert " killed, " in ended("kill", command, 50)


@pytest.mark.parametrize("command", ["convert"])
def test_a_few_kills_leave_the_old_or_the_new(command: str) -> None:
    assert " killed, " in ended("kill", command, 4)


@pytest.mark.parametrize(
    "command", ["convert", *(pytest.param(c, marks=pytest.mark.slow) for c in ("export", "train"))]
)
def test_a_full_disk_is_one_line_and_the_old_stays(command: str) -> None:
    assert " met a full disk" in ended("full", command, 4 if command == "convert" else 12)
