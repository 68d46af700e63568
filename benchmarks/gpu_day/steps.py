"""The steps of the day, by name, in their order."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from blip2rt.backends.trt import builder, gpu, onnxruntime_shim
from blip2rt.errors import BackendError

from . import device, kernels, large, loops
from .day import ROOT, Day, LeftOut, Step

SANITIZER = "compute-sanitizer"
_PLACES = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer", "/opt/nvidia/compute-sanitizer")


def doctor(day: Day) -> dict[str, Any]:
    """What `blip2rt doctor` says of the machine, and the card."""
    from blip2rt.cli import doctor

    card = gpu.find()
    findings = [asdict(finding) for finding in doctor.examine()]
    found: dict[str, Any] = {"card": card if isinstance(card, str) else {**asdict(card), "sm": card.sm}}
    return {**found, "findings": findings}


def bandwidth(day: Day) -> dict[str, Any]:
    rate = device.bandwidth(device.open_cuda(), 1 << 20 if day.stand_in else 1 << 29)
    return {"bytes a second": rate, "GB/s": round(rate / 1e9, 1)}


def check_kernels(day: Day) -> dict[str, Any]:
    """BuildResult for the card, held to the CPU's, and timed."""
    cuda = device.open_cuda()
    found = kernels.check(cuda, day.turns)
    return {**found, "faults": found["differ"], "microseconds": kernels.times(cuda, small=day.stand_in)}


def sanitize(day: Day) -> dict[str, Any]:
    """The kernels under memcheck and racecheck."""
    program = sanitizer()
    if program is None:
        raise LeftOut(f"{SANITIZER} is not installed: lay the wheel nvidia-cuda-sanitizer-api there, or the toolkit")
    device.open_cuda()
    found: dict[str, Any] = {"program": program, "faults": []}
    for tool in ("memcheck", "racecheck"):
        command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "benchmarks.gpu_day.kernels",
                   "--turns", str(min(day.turns, 6))]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, env=day.environment, capture_output=True, text=True)
        lines = [line.strip("= \n") for line in done.stdout.splitlines() if line.startswith("=====")]
        found[tool] = lines[-1] if lines else f"it ended with code {done.returncode}"
        if done.returncode:
            found["faults"].append(f"{tool}: {' / '.join(lines[:6] or done.stderr.strip().splitlines()[-3:])}")
    return found


def sanitizer() -> str | None:
    """The program, of the toolkit or of pip's package."""
    spec = importlib.util.find_spec("nvidia")  # finds, does not import
    folders = (spec.submodule_search_locations or []) if spec else []
    packages = [file for folder in folders for file in sorted(Path(folder).glob(f"*/bin/{SANITIZER}"))]
    return shutil.which(SANITIZER) or next(
        (str(file) for file in (*(Path(place) / SANITIZER for place in _PLACES), *packages) if file.exists()), None
    )


def without_tensorrt(day: Day) -> dict[str, Any]:
    """The backend trt from bundles to texts, with ONNX Runtime in TensorRT's place."""
    return {"by": _take_place(day), **loops.on_trt(day.out / "bundles")}


def tensorrt(day: Day) -> dict[str, Any]:
    """The backend trt with TensorRT itself."""
    return {"by": _real_tensorrt(day), **loops.on_trt(day.out / "bundles")}


def _large(precision: str) -> Step:
    def take(day: Day) -> dict[str, Any]:
        try:
            by = _real_tensorrt(day)
        except LeftOut as why:
            try:
                by = _take_place(day)
            except LeftOut as neither:
                raise LeftOut(f"{why}; {neither}") from neither
        return large.step(day, precision, by)

    return take


def _real_tensorrt(day: Day) -> str:
    """Name and version. Raises LeftOut: it is not installed, does not know the card, or cannot run here."""
    if day.stand_in:
        raise LeftOut("TensorRT needs a GPU, not the driver that stands in")
    try:
        card = gpu.find()
        return builder.identity(builder.load_for_gpu(None if isinstance(card, str) else card.sm))
    except BackendError as error:
        raise LeftOut(str(error)) from error


def _take_place(day: Day) -> str:
    """Let ONNX Runtime take TensorRT's place in this process. Raises LeftOut: it has no CUDA provider."""
    device.open_cuda()
    made = onnxruntime_shim.find()
    if day.stand_in:  # the device's memory is the host's
        import onnxruntime

        made = onnxruntime_shim.Executor(onnxruntime, "CPUExecutionProvider")
    if made is None:
        raise LeftOut("ONNX Runtime has no CUDA provider: lay onnxruntime-gpu's wheel there, with its libraries")
    builder.load_tensorrt = lambda name=None: made
    return builder.identity(made)


STEPS: dict[str, Step] = {
    "doctor": doctor, "bandwidth": bandwidth, "kernels": check_kernels, "sanitize": sanitize,
    "loop-by-onnxruntime": without_tensorrt, "loop-by-tensorrt": tensorrt,
    "large-fp16": _large("fp16"), "large-int4": _large("int4"),
}  # fmt: skip
