"""Every request for memory that the core makes fails once: MemoryError or the right result, never a crash or a hang."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compiled import compiled
from tests.seeds import new_seed
from tests.tiny.bundle import Tiny

pytest.importorskip("onnx")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def failing() -> Path:
    compiler = shutil.which("c++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C++ compiler")
    if "BLIP2RT_NATIVE" in os.environ:
        pytest.skip("a sanitizer has an operator new of its own")
    source = ROOT / "tests" / "engines" / "native" / "fail_new.cpp"
    return compiled([compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-Wl,--no-as-needed", "-ldl"], [source], ".so")


@pytest.mark.parametrize("most", [25, pytest.param(0, marks=pytest.mark.slow)], ids=["sample", "every"])
def test_a_lack_of_memory_is_a_memory_error(tiny: Tiny, failing: Path, most: int) -> None:
    seed = new_seed()
    command = [sys.executable, "-m", "tests.engines.native.lack_of_memory", str(tiny.path), str(seed), str(most)]
    env = {**os.environ, "LD_PRELOAD": str(failing), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=3000)
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0, f"seed {seed}, {last}: {done.returncode} {done.stderr[-3000:]}"
    assert last[0].startswith("in all ")
