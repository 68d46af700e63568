"""The driver calls through the installed cuda-bindings, on a simulated libcuda.so.1."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compiled import compiled

pytest.importorskip("cuda.bindings.driver", reason="needs cuda-bindings: the extra trt-cu12 or trt-cu13")
ROOT = Path(__file__).parents[2]


def test_driver_calls_match_the_bindings(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    command = [compiler, "-std=c11", "-Wall", "-Werror", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    library = compiled(command, [ROOT / "tests" / "trt" / "native" / "libcuda.c"], ".so")
    (tmp_path / "libcuda.so.1").symlink_to(library)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.trt.native.every_call"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.endswith(": ok\n"), done.stderr
