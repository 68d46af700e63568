"""`python -m benchmarks.gpu_day` as a whole, on the driver that stands in: real processes, cuda-bindings and NVRTC."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")
pytest.importorskip("cuda.bindings.driver", reason="needs cuda-bindings: the extra trt-cu12 or trt-cu13")

from benchmarks.gpu_day import day, installed, kernels, report, steps
from blip2rt.backends.trt import gpu
from blip2rt.errors import Blip2rtError

ROOT = Path(__file__).parents[2]
# As compute-sanitizer is called: options, then what it watches.
SANITIZER = """#!/bin/sh
while [ "$1" != "{python}" ]; do shift; done
echo "========= ERROR SUMMARY: {errors} errors"
exit {code}
"""


def run(out: Path, *more: str) -> tuple[int, dict[str, Any], str]:
    """One day in a process of its own: its exit code, its JSON, and what it said."""
    command = [sys.executable, "-m", "benchmarks.gpu_day", "--stand-in", "--geometry", "little", "--turns", "3",
               "--skip", "doctor", "--out", str(out), *more]  # fmt: skip
    path = f"{out / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    return done.returncode, json.loads((out / "gpu_day.json").read_text()), done.stderr


def sanitizer(out: Path, errors: int) -> None:
    program = out / "bin" / "compute-sanitizer"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(SANITIZER.format(python=sys.executable, errors=errors, code=9 if errors else 0))
    program.chmod(0o755)


def test_the_day_runs_whole_goes_on_and_survives_a_step(tmp_path: Path) -> None:
    """A step that fails keeps no other from its work; the next call takes that step alone, and those left out."""
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    sanitizer(tmp_path, 2)
    code, whole, said = run(tmp_path)
    states = {name: step["state"] for name, step in whole["steps"].items()}
    if "libnvrtc" in str(whole["steps"]["kernels"]["why"]):
        pytest.skip("needs NVRTC: pip install nvidia-cuda-nvrtc")
    assert code == 1 and set(states) == {*day.NAMES} - {"doctor"}, said
    assert {name for name, state in states.items() if state == day.DONE} == {
        "bandwidth", "kernels", "loop-by-onnxruntime", "large-fp16", "large-int4"}, said  # fmt: skip
    assert states["sanitize"] == day.FAILED and "2 errors" in whole["steps"]["sanitize"]["why"]
    found = {name: step["found"] for name, step in whole["steps"].items()}
    assert found["kernels"]["compiled"]["architecture"] == "sm_87" and not found["kernels"]["differ"]
    assert found["loop-by-onnxruntime"]["cases"] == 7 and found["loop-by-onnxruntime"]["ms a step"] > 0
    native = found["loop-by-onnxruntime"]["the graph that writes its cache"]
    assert native["cases"] == 7 and native["ms a step"] > 0
    assert found["large-fp16"]["weights a step"] > 0 and found["large-int4"]["of the limit"] > 0
    page = (tmp_path / "report.md").read_text()
    assert "No GPU took part" in page and all(f"| {name} |" in page for name in states)

    sanitizer(tmp_path, 0)
    code, whole, said = run(tmp_path, "--skip", "doctor", "loop-by-tensorrt")
    assert code == 0 and whole["steps"]["sanitize"]["found"]["racecheck"] == "ERROR SUMMARY: 0 errors"
    assert said.count("done before") == 5


def test_steps_have_names() -> None:
    assert tuple(steps.STEPS) == day.NAMES


def test_results_of_other_sources_or_settings_are_taken_anew(tmp_path: Path) -> None:
    today = day.Day(tmp_path, "little", stand_in=True)
    (tmp_path / "steps").mkdir()
    assert day.take_here(today, "doctor", lambda _: {"x": 1}) == 0
    assert day.read(today, "doctor") is not None
    assert day.read(day.Day(tmp_path, "tiny", stand_in=True), "doctor") is None


def test_a_step_that_has_found_faults_has_failed(tmp_path: Path) -> None:
    today = day.Day(tmp_path, "little")
    (tmp_path / "steps").mkdir()
    day.take_here(today, "kernels", lambda _: {"faults": ["choose, turn 3"]})
    known = day.read(today, "kernels")
    assert known is not None and known["state"] == day.FAILED and known["why"] == "choose, turn 3"
    page = report.markdown(day.whole(today, {"kernels": {**known, "seconds": 1}}))
    assert "| kernels | failed | 1 | choose, turn 3 |" in page


def test_a_card_that_tensorrt_does_not_know_leaves_its_steps_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tensorrt-rtx on an H100: the large steps take ONNX Runtime in its place, or say what both lack."""
    from tests.trt.gpu_stand_in import Driver, TensorRTRtx

    today, taken = day.Day(tmp_path, "little"), []
    monkeypatch.setattr(steps.builder, "load_tensorrt", lambda name=None: TensorRTRtx(Driver()))
    monkeypatch.setattr(gpu, "find", lambda: gpu.Gpu("NVIDIA H100", (9, 0), 80 << 30, (13, 0), False, 132))
    monkeypatch.setattr(steps.loops, "on_trt", lambda folder: taken.append("loop") or {})
    monkeypatch.setattr(steps.large, "step", lambda today, precision, by: {"by": by})
    monkeypatch.setattr(steps, "_take_place", lambda today: "onnxruntime")
    with pytest.raises(day.LeftOut, match="tensorrt_rtx 1.7.0 does not know SM90"):
        steps.STEPS["loop-by-tensorrt"](today)
    assert steps.STEPS["large-int4"](today) == {"by": "onnxruntime"} and not taken

    def lacks(today: day.Day) -> str:
        raise day.LeftOut("ONNX Runtime has no CUDA provider")

    monkeypatch.setattr(steps, "_take_place", lacks)
    with pytest.raises(day.LeftOut, match="does not know SM90.*; ONNX Runtime has no CUDA provider"):
        steps.STEPS["large-fp16"](today)


def test_wheels_are_wanted_where_they_were_named(tmp_path: Path) -> None:
    assert installed.python_with(None, tmp_path) == sys.executable
    with pytest.raises(Blip2rtError, match="has no wheels"):
        installed.python_with(tmp_path, tmp_path)


def test_a_kernel_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself, on the stand-in in this process: without one of the kernels it tells which."""
    from benchmarks.gpu_day import device
    from blip2rt.backends.trt.cuda import Cuda
    from blip2rt.backends.trt.search import Kernels
    from tests.trt.gpu_stand_in import Driver, Nvrtc

    cuda = Cuda(Driver(), Nvrtc())
    real, left_out = Kernels.launch, ""
    monkeypatch.setattr(Kernels, "launch", lambda self, name, *rest: name == left_out or real(self, name, *rest))
    monkeypatch.setattr(device, "open_kernels", lambda cuda: (Kernels(cuda, b"stand-in of sm_87"), {}))
    for left_out in ("scatter", "spread", "reorder"):
        assert any(left_out in each for each in kernels.check(cuda, 2)["differ"]), left_out
