"""The steps by name, in order."""

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
from .day import ROOT, Day, Skipped, Step

SANITIZER = "compute-sanitizer"
_PLACES = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer", "/opt/nvidia/compute-sanitizer")


def doctor(day: Day) -> dict[str, Any]:
    """The findings of `blip2rt doctor` and a description of the card."""
    from blip2rt.cli import doctor

    card = gpu.find()
    findings = [asdict(finding) for finding in doctor.examine()]
    found: dict[str, Any] = {"card": card if isinstance(card, str) else {**asdict(card), "sm": card.sm}}
    return {**found, "findings": findings}


def bandwidth(day: Day) -> dict[str, Any]:
    rate = device.bandwidth(device.open_cuda(), 1 << 20 if day.stand_in else 1 << 29)
    return {"bytes per second": rate, "GB/s": round(rate / 1e9, 1)}


def check_kernels(day: Day) -> dict[str, Any]:
    """Compile the kernels for the card, and compare them with the CPU's results."""
    found = kernels.check(device.open_cuda(), day.turns)
    return {**found, "faults": found["differ"]}


def sanitize(day: Day) -> dict[str, Any]:
    """Run the kernels under memcheck and racecheck."""
    program = sanitizer()
    if program is None:
        raise Skipped(f"{SANITIZER} is not installed: install nvidia-cuda-sanitizer-api or the CUDA toolkit")
    device.open_cuda()
    found: dict[str, Any] = {"program": program, "faults": []}
    for tool in ("memcheck", "racecheck"):
        command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "benchmarks.gpu_day.kernels"]
        command += ["--turns", str(min(day.turns, 6))]
        done = subprocess.run(command, cwd=ROOT, env=day.environment, capture_output=True, text=True)
        lines = [line.strip("= \n") for line in done.stdout.splitlines() if line.startswith("=====")]
        found[tool] = lines[-1] if lines else f"exit status {done.returncode}"
        if done.returncode:
            found["faults"].append(f"{tool}: {' / '.join(lines[:6] or done.stderr.strip().splitlines()[-3:])}")
    return found


def sanitizer() -> str | None:
    """The path of compute-sanitizer from the CUDA toolkit or a pip package."""
    spec = importlib.util.find_spec("nvidia")  # without importing it
    folders = (spec.submodule_search_locations or []) if spec else []
    packages = [file for folder in folders for file in sorted(Path(folder).glob(f"*/bin/{SANITIZER}"))]
    return shutil.which(SANITIZER) or next(
        (str(file) for file in (*(Path(place) / SANITIZER for place in _PLACES), *packages) if file.exists()), None
    )


def without_tensorrt(day: Day) -> dict[str, Any]:
    """The backend trt with ONNX Runtime in place of TensorRT."""
    return {"by": _use_onnxruntime(day), **loops.on_trt(day.out / "bundles")}


def tensorrt(day: Day) -> dict[str, Any]:
    """The backend trt with TensorRT itself."""
    return {"by": _tensorrt_identity(day), **loops.on_trt(day.out / "bundles")}


def _large(precision: str) -> Step:
    def step(day: Day) -> dict[str, Any]:
        try:
            by = _tensorrt_identity(day)
        except Skipped as why:
            try:
                by = _use_onnxruntime(day)
            except Skipped as other:
                raise Skipped(f"{why}; {other}") from other
        return large.step(day, precision, by)

    return step


def _tensorrt_identity(day: Day) -> str:
    """Name and version of TensorRT. Raises Skipped if it is not installed or does not support the card."""
    if day.stand_in:
        raise Skipped("TensorRT needs a GPU, not a simulated driver")
    try:
        card = gpu.find()
        return builder.identity(builder.load_for_gpu(None if isinstance(card, str) else card.sm))
    except BackendError as error:
        raise Skipped(str(error)) from error


def _use_onnxruntime(day: Day) -> str:
    """Replace TensorRT by ONNX Runtime in this process. Raises Skipped if it has no CUDA provider."""
    device.open_cuda()
    shim = onnxruntime_shim.find()
    if day.stand_in:  # device memory is host memory
        import onnxruntime

        shim = onnxruntime_shim.Executor(onnxruntime, "CPUExecutionProvider")
    if shim is None:
        raise Skipped("ONNX Runtime has no CUDA provider: install onnxruntime-gpu and its libraries")
    builder.load_tensorrt = lambda name=None: shim
    return builder.identity(shim)


STEPS: dict[str, Step] = {
    "doctor": doctor,
    "bandwidth": bandwidth,
    "kernels": check_kernels,
    "sanitize": sanitize,
    "loop-by-onnxruntime": without_tensorrt,
    "loop-by-tensorrt": tensorrt,
    "large-fp16": _large("fp16"),
    "large-int4": _large("int4"),
}
