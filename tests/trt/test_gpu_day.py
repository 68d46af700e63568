"""`python -m benchmarks.gpu_day` on a simulated driver, with real processes, cuda-bindings and NVRTC."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")
pytest.importorskip("cuda.bindings.driver", reason="needs cuda-bindings: the extra trt-cu12 or trt-cu13")

from benchmarks.gpu_day import day, environment, kernels, steps
from benchmarks.gpu_day.__main__ import main
from blip2rt.backends.trt import gpu
from blip2rt.backends.trt.search import Kernels
from blip2rt.errors import Blip2rtError

pytestmark = pytest.mark.long(19)

ROOT = Path(__file__).parents[2]
# Called like compute-sanitizer: options, then the command to watch.
SANITIZER = """#!/bin/sh
while [ "$1" != "{python}" ]; do shift; done
echo "========= ERROR SUMMARY: {errors} errors"
exit {code}
"""


def run(out: Path, *more: str) -> tuple[int, dict[str, Any], str]:
    """Run the command in a process. Return its exit status, its JSON and its standard error."""
    options = ["--stand-in", "--geometry", "little", "--turns", "3", "--out", str(out), *more]
    command = [sys.executable, "-m", "benchmarks.gpu_day", *options]
    path = f"{out / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    return done.returncode, json.loads((out / "gpu_day.json").read_text()), done.stderr


def sanitizer(out: Path, errors: int) -> None:
    program = out / "bin" / "compute-sanitizer"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(SANITIZER.format(python=sys.executable, errors=errors, code=9 if errors else 0))
    program.chmod(0o755)


def test_gpu_day_runs_all_steps_and_resumes_after_a_failure(tmp_path: Path) -> None:
    """A failed step does not stop the others; the next run repeats only that step and skipped ones."""
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    sanitizer(tmp_path, 2)
    code, results, stderr = run(tmp_path)
    states = {name: step["state"] for name, step in results["steps"].items()}
    if "libnvrtc" in str(results["steps"]["kernels"]["why"]):
        pytest.skip("needs NVRTC: pip install nvidia-cuda-nvrtc")
    assert code == 1 and set(states) == {*day.NAMES}, stderr
    done = {"doctor", "bandwidth", "kernels", "loop-by-onnxruntime", "large-fp16", "large-int4", "training"}
    assert {name for name, state in states.items() if state == day.DONE} == done, stderr
    assert states["sanitize"] == day.FAILED and "2 errors" in results["steps"]["sanitize"]["why"]
    found = {name: step["found"] for name, step in results["steps"].items()}
    assert found["doctor"]["card"]["sm"] == "SM87" and "captions" in str(found["doctor"]["findings"])
    assert found["kernels"]["compiled"]["architecture"] == "sm_87" and not found["kernels"]["differ"]
    assert set(Kernels.NAMES) <= {name.partition(",")[0] for name in found["kernels"]["microseconds"]}
    assert found["loop-by-onnxruntime"]["cases"] == 7 and found["loop-by-onnxruntime"]["ms per step"] > 0
    native = found["loop-by-onnxruntime"]["in-place cache"]
    assert native["cases"] == 7 and native["ms per step"] > 0
    assert found["large-fp16"]["weight bytes per step"] > 0 and found["large-int4"]["of the limit"] > 0
    assert "images/s" in found["training"]["stage 1"] and "LAVIS' way" in found["training"]["stage 2"]
    page = (tmp_path / "report.md").read_text()
    assert "No GPU was used" in page and f"onnxruntime {metadata.version('onnxruntime')}" in page
    assert all(f"| {name} |" in page for name in states) and "| sanitize | failed | " in page

    sanitizer(tmp_path, 0)
    code, results, stderr = run(tmp_path, "--skip", "loop-by-tensorrt")
    assert code == 0 and results["steps"]["sanitize"]["found"]["racecheck"] == "ERROR SUMMARY: 0 errors"
    assert stderr.count("done before") == 7


def taken(today: day.Day, name: str) -> bool:
    return day.read_result(today, name) is not None


def test_results_of_another_card_or_package_are_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only steps that depend on a changed package are repeated; other settings invalidate all results."""
    monkeypatch.setattr(day, "_run", lambda *_: 1)
    packages = {"tensorrt": "10.3", "onnxruntime-gpu": "1.30", "nvidia-cuda-nvrtc": "13.0"}
    today = day.Day(tmp_path, "little", True, 3, "Orin", packages)
    for name in day.NAMES:
        assert not taken(today, name)
        day._run_step(today, name, sys.executable, 1)
    assert all(taken(today, name) for name in day.NAMES)
    for changed, old in (
        ({"tensorrt": "10.16"}, {"doctor", "loop-by-tensorrt", "large-fp16", "large-int4"}),
        ({"onnxruntime-gpu": "1.31"}, {*day.NAMES} - {"bandwidth", "kernels", "sanitize", "training"}),
        ({"nvidia-cuda-nvrtc": "13.1"}, {*day.NAMES}),
    ):
        later = replace(today, packages={**packages, **changed})
        assert {name for name in day.NAMES if not taken(later, name)} == old
    for other in (replace(today, card="Thor"), replace(today, geometry="blip2-opt-2.7b"), replace(today, turns=4)):
        assert not any(taken(other, name) for name in day.NAMES)


def test_interrupted_gpu_day_keeps_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report and JSON contain the finished steps, including those of earlier runs."""

    def take(cut_at: str, today: day.Day, name: str, *_: Any) -> dict[str, Any]:
        if name == cut_at:
            raise KeyboardInterrupt
        result = {"state": day.FAILED, "why": "", "found": {}, "seconds": 1, "key": day.key(today, name)}
        (tmp_path / "steps").mkdir(exist_ok=True)
        (tmp_path / "steps" / f"{name}.json").write_text(json.dumps(result))
        return result

    for cut_at, known in (("kernels", 2), ("bandwidth", 2)):
        monkeypatch.setattr(day, "_run_step", partial(take, cut_at))
        (tmp_path / "gpu_day.json").unlink(missing_ok=True)
        assert main(["--out", str(tmp_path), "--geometry", "little"]) == 130
        steps_known = json.loads((tmp_path / "gpu_day.json").read_text())["steps"]
        assert list(steps_known) == list(day.NAMES[:known])
        assert "| bandwidth | failed |" in (tmp_path / "report.md").read_text()


def test_steps_are_skipped_if_tensorrt_does_not_support_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tensorrt-rtx on an H100: the large steps use ONNX Runtime instead, or say what both lack."""
    from tests.trt.gpu_stand_in import Driver, TensorRT

    today, taken = day.Day(tmp_path, "little"), []
    monkeypatch.setattr(steps.builder, "load_tensorrt", lambda name=None: TensorRT(Driver(), rtx=True))
    monkeypatch.setattr(gpu, "find", lambda: gpu.Gpu("NVIDIA H100", (9, 0), 80 << 30, (13, 0), False, 132))
    monkeypatch.setattr(steps.loops, "on_trt", lambda folder: taken.append("loop") or {})
    monkeypatch.setattr(steps.large, "step", lambda today, precision, by: {"by": by})
    monkeypatch.setattr(steps, "_use_onnxruntime", lambda today: "onnxruntime")
    with pytest.raises(day.Skipped, match="tensorrt_rtx 1.7.0 does not support SM90"):
        steps.STEPS["loop-by-tensorrt"](today)
    assert steps.STEPS["large-int4"](today) == {"by": "onnxruntime"} and not taken

    def lacks(today: day.Day) -> str:
        raise day.Skipped("ONNX Runtime has no CUDA provider")

    monkeypatch.setattr(steps, "_use_onnxruntime", lacks)
    with pytest.raises(day.Skipped, match="does not support SM90.*; ONNX Runtime has no CUDA provider"):
        steps.STEPS["large-fp16"](today)


def test_step_timeout_ends_its_child_processes(tmp_path: Path) -> None:
    with open(tmp_path / "words", "wb") as words:
        assert day._run(["sh", "-c", "sleep 600 & echo $!; wait"], dict(os.environ), words, 1) is None
        assert day._run(["sh", "-c", "exit 3"], dict(os.environ), words, 60) == 3
    begun = Path("/proc") / (tmp_path / "words").read_text().strip() / "stat"
    for _ in range(100):  # until its new parent has reaped it
        if not begun.exists() or begun.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("it still runs")


def test_bundles_are_rebuilt_when_sources_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def make(path: Path) -> None:
        made.append(path)
        path.mkdir()  # fails if the old folder still exists

    for sources, count in (("a", 1), ("a", 1), ("b", 2), ("b", 2)):
        monkeypatch.setattr(day, "_digest", lambda folders, sources=sources: sources)
        assert day.bundle(tmp_path / "bundles", "trt", make) == tmp_path / "bundles" / "trt"
        assert len(made) == count


def wheel(folder: Path, name: str, *requires: str) -> None:
    """An empty wheel with a name and requirements."""
    info = f"{name}-1.0.dist-info"
    needs = "".join(f"Requires-Dist: {each}\n" for each in requires)
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as file:
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}")
        tags = "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        file.writestr(f"{info}/WHEEL", tags)
        file.writestr(f"{info}/RECORD", "")


def test_wheels_make_an_environment_or_report_missing_dependencies(tmp_path: Path) -> None:
    """onnxruntime-gpu satisfies blip2rt's requirement of onnxruntime."""
    assert environment.python_for(None, tmp_path) == sys.executable
    wheels, out = tmp_path / "wheels", tmp_path / "out"
    wheels.mkdir()
    with pytest.raises(Blip2rtError, match="has no wheels"):
        environment.python_for(wheels, out)
    wheel(wheels, "a_reader", "onnxruntime>=0.5", "a_part_of_it")
    wheel(wheels, "onnxruntime_gpu")
    missing = "requirements are missing: a-reader 1.0 requires a-part-of-it, which is not installed: put"
    with pytest.raises(Blip2rtError, match=missing):
        environment.python_for(wheels, out)
    wheel(wheels, "a_part_of_it")
    python = environment.python_for(wheels, out)
    said = environment.machine(python, day.Day(tmp_path, "little").environment)
    assert said["card"] and said["packages"]["onnxruntime-gpu"] == "1.0"
    with pytest.raises(Blip2rtError, match="false cannot run blip2rt"):
        environment.machine("false", os.environ)
    made = (out / "environment" / "wheels.txt").stat().st_mtime_ns
    assert environment.python_for(wheels, out) == python
    assert (out / "environment" / "wheels.txt").stat().st_mtime_ns == made
    wheel(wheels, "onnxruntime")
    with pytest.raises(Blip2rtError, match="which overwrite each other: remove onnxruntime"):
        environment.python_for(wheels, out)


def test_gpu_day_starts_without_installed_packages(tmp_path: Path) -> None:
    """An interpreter without any package parses the command line and installs the wheels."""
    code = "import sys, runpy; sys.path[:] = [p for p in sys.path if 'site-packages' not in p]; "
    code += f"sys.path.append({str(ROOT)!r}); "
    code += "runpy.run_module('benchmarks.gpu_day', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-S", "-c", code, "--wheels", str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "has no wheels: put *.whl files there" in done.stderr
    assert len(done.stderr.splitlines()) == 1


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
