"""export, convert, train and bench, killed at any moment or on a full disk, leave the old or the new output intact."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.seeds import new_seed

pytestmark = [
    pytest.mark.long(20),
    pytest.mark.skipif(sys.platform != "linux", reason="forks, and kills what it forked"),
]

ROOT = Path(__file__).parents[3]


def interrupt(mode: str, command: str, count: int) -> str:
    """Run tests/tiny/interruption.py in a process; return its summary."""
    words = ["-m", "tests.tiny.interruption", mode, command, str(count), str(new_seed())]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, f"{words}: {done.stdout[-1000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", ["export", "convert", "train", "bench"])
def test_fifty_kills_keep_output_intact(command: str) -> None:
    assert " killed, " in interrupt("kill", command, 50)


def test_four_kills_keep_output_intact() -> None:
    assert " killed, " in interrupt("kill", "convert", 4)


@pytest.mark.parametrize(
    "command", ["convert", *(pytest.param(c, marks=pytest.mark.slow) for c in ("export", "train"))]
)
def test_full_disk_is_a_one_line_error_and_keeps_old_output(command: str) -> None:
    assert " met a full disk" in interrupt("full", command, 4 if command == "convert" else 12)
