"""BLIP2RT_KERNELS: every instruction set of this processor gives the results of ONNX Runtime's own operators."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from blip2rt.native import native
from tests.seeds import new_seed

pytest.importorskip("onnx")

ROOT = Path(__file__).parents[2]
LEVELS = ("amx", "avx512", "avxvnni", "avx2", "sse41", "dotprod", "neon", "plain")
CHECK = """
import sys
from argparse import Namespace
from pathlib import Path
import numpy as np
from PIL import Image
from blip2rt.image import resize
from blip2rt.native import native
from tests.fuzz.operators import work
rng = np.random.default_rng(int(sys.argv[1]))
for filter in "box bilinear hamming bicubic lanczos".split() * 20:
    width, height, *to = rng.choice([1, 2, 3, 7, 12, 50, 51, 400], 4).tolist()
    values = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)  # or hard edges, which overshoot
    picture = Image.fromarray(values if rng.random() < 0.7 else values // 128 * 255)
    want = picture.resize(to, Image.Resampling[filter.upper()])
    np.testing.assert_array_equal(resize(picture, tuple(to), filter), want)
print(*[kernel.split()[-1] for kernel in native.processor_kernels()], flush=True)
work(Namespace(seed=int(sys.argv[1]), first=0, count=24, seconds=1e9, sound=True, folder=Path(sys.argv[2])))
"""


def run(level: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command, env = [sys.executable, *map(str, arguments)], {**os.environ, "BLIP2RT_KERNELS": level}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)


@pytest.mark.long(8, "a process for each level")
@pytest.mark.parametrize("level", LEVELS)
def test_every_level_matches_onnx_runtime(level: str, tmp_path: Path) -> None:
    supported = native.kernel_levels()
    if level not in supported:
        pytest.skip(f"this processor has {', '.join(supported)}")
    done = run(level, "-c", CHECK, new_seed(), tmp_path)
    assert done.returncode == 0, done
    names = done.stdout.splitlines()[0].split()
    assert names and not set(names) & set(supported[: supported.index(level)]), done
    assert level in names, names


@pytest.mark.parametrize("level", ["sse", "neon" if "avx2" in native.kernel_levels() else "amx"])
def test_unsupported_levels_are_rejected_in_one_line(level: str) -> None:
    done = run(level, "-m", "blip2rt", "caption", ROOT / "docs" / "photo.jpg")
    assert done.returncode == 2 and not done.stdout
    choices = ", ".join(native.kernel_levels())
    fix = f"give one that this processor supports ({choices}), or unset it"
    assert done.stderr == f"blip2rt: error: BLIP2RT_KERNELS is {level!r}: {fix}\n"
    assert f"BLIP2RT_KERNELS is {level!r}" in run(level, "-m", "blip2rt", "doctor").stdout
