"""BLIP2RT_KERNELS: every instruction set of this processor gives the results of ONNX Runtime's own operators."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from blip2rt.native import native
from tests.seeds import new_seed

pytest.importorskip("onnx")

ROOT = Path(__file__).parents[2]
LEVELS = ("amx", "avx512", "avxvnni", "avx2", "dotprod", "neon", "plain")
VALID = 8  # the first graphs of tests.engines.native.mutants are unaltered
KERNELS = "from blip2rt.native import native; print(*native.processor_kernels(), sep=chr(10))"


def run(level: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "BLIP2RT_KERNELS": level}
    )


@pytest.mark.long(13, "a process for each level")
@pytest.mark.parametrize("level", LEVELS)
def test_every_level_matches_onnx_runtime(level: str, tmp_path: Path) -> None:
    supported = native.kernel_levels()
    if level not in supported:
        pytest.skip(f"this processor has {', '.join(supported)}")
    done = run(level, "-c", KERNELS)
    names = [line.split()[-1] for line in done.stdout.splitlines()]
    assert names and not set(names) & set(supported[: supported.index(level)]), done
    assert level in names or level == "neon", names
    for seed in (new_seed(), new_seed()):
        done = run(level, "-m", "tests.engines.native.mutants", seed, VALID, tmp_path, 0)
        assert done.returncode == 0 and done.stdout.endswith(f"ran {VALID}\n"), f"seed {seed}: {done}"


@pytest.mark.parametrize("level", ["sse", "AVX2", "neon" if "avx2" in native.kernel_levels() else "amx"])
def test_unsupported_levels_are_rejected_in_one_line(level: str) -> None:
    done = run(level, "-m", "blip2rt", "caption", ROOT / "docs" / "photo.jpg")
    assert done.returncode == 2 and not done.stdout
    choices = ", ".join(native.kernel_levels())
    fix = f"give one that this processor supports ({choices}), or unset it"
    assert done.stderr == f"blip2rt: error: BLIP2RT_KERNELS is {level!r}: {fix}\n"
    assert f"BLIP2RT_KERNELS is {level!r}" in run(level, "-m", "blip2rt", "doctor").stdout
