"""`python -m benchmarks.gpu_day` and every driver call, with cuda-bindings on simulated drivers, and NVRTC."""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from benchmarks.gpu_day import day, kernels
from blip2rt.backends.trt.search import Kernels
from tests.compiled import compiled

pytest.importorskip("cuda.bindings.driver", reason="needs cuda-bindings: the extra trt-cu12 or trt-cu13")


pytestmark = pytest.mark.long(3, "every step of the GPU day as a process, against the stand-in")

ROOT = Path(__file__).parents[2]
# Called like compute-sanitizer: options, then the command to watch.
SANITIZER = """#!/bin/sh
while [ "$1" != "{python}" ]; do shift; done
echo "========= ERROR SUMMARY: 2 errors"
exit 9
"""


def test_gpu_day_runs_all_steps_after_a_failure(tmp_path: Path) -> None:
    """A failed step does not stop the others."""
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    (program := tmp_path / "bin" / "compute-sanitizer").parent.mkdir()
    program.write_text(SANITIZER.format(python=sys.executable))
    program.chmod(0o755)
    options = ["--stand-in", "--geometry", "little", "--turns", "3", "--out", str(tmp_path)]
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "benchmarks.gpu_day", *options]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    code, stderr, results = done.returncode, done.stderr, json.loads((tmp_path / "gpu_day.json").read_text())
    states = {name: step["state"] for name, step in results["steps"].items()}
    if "libnvrtc" in str(results["steps"]["kernels"]["why"]):
        pytest.skip("needs NVRTC: pip install nvidia-cuda-nvrtc")
    assert code == 1 and set(states) == {*day.NAMES}, stderr
    done = {"doctor", "bandwidth", "kernels", "loop-by-onnxruntime", "large-fp16", "large-int4"}
    assert {name for name, state in states.items() if state == day.DONE} == done, stderr
    assert states["sanitize"] == day.FAILED and "2 errors" in results["steps"]["sanitize"]["why"]
    found = {name: step["found"] for name, step in results["steps"].items()}
    assert found["doctor"]["card"]["sm"] == "SM87" and "captions" in str(found["doctor"]["findings"])
    assert found["kernels"]["compiled"]["architecture"] == "sm_87" and not found["kernels"]["differ"]
    assert found["loop-by-onnxruntime"]["cases"] == 7 and found["loop-by-onnxruntime"]["ms per step"] > 0
    native = found["loop-by-onnxruntime"]["in-place cache"]
    assert native["cases"] == 7 and native["ms per step"] > 0
    assert found["large-fp16"]["weight bytes per step"] > 0 and found["large-int4"]["of the limit"] > 0
    page = (tmp_path / "report.md").read_text()
    assert "No GPU was used" in page and f"onnxruntime {metadata.version('onnxruntime')}" in page
    assert all(f"| {name} |" in page for name in states) and "| sanitize | failed | " in page


def test_failed_steps_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash and a timeout."""
    today = day.Day(tmp_path, "little")
    for module, limit, why in (("no.such.module", 60, "exit status 1"), (day.MODULE, 0.01, "more than 0 s")):
        monkeypatch.setattr(day, "MODULE", module)
        result = day._run_step(today, "doctor", limit)
        assert result["state"] == day.FAILED and why in result["why"]


def test_wrong_kernel_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself, on the simulated driver: it names a kernel that does nothing."""
    from benchmarks.gpu_day import device
    from blip2rt.backends.trt.cuda import Cuda
    from tests.trt.gpu_stand_in import Driver, Nvrtc

    cuda = Cuda(Driver(), Nvrtc())
    real, left_out = Kernels.launch, ""
    monkeypatch.setattr(Kernels, "launch", lambda self, name, *rest: name == left_out or real(self, name, *rest))
    monkeypatch.setattr(device, "open_kernels", lambda cuda: (Kernels(cuda, b"stand-in of sm_87"), {}))
    for left_out in Kernels.NAMES:
        assert any(left_out in each for each in kernels.check(cuda, 2)["differ"]), left_out


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
