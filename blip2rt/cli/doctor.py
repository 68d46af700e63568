"""`blip2rt doctor`: what this machine has, what is missing, and the command that installs it.

Opens what the runtime opens, and captions a picture. Checks NVIDIA's driver and packages if any are installed, and
imports TensorRT if there is a GPU. Exit status 0 if a picture was captioned, otherwise 2.
"""

import importlib.util
import os
import platform
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import numpy as np

from ..backends import ort
from ..backends.trt import builder, gpu
from ..backends.trt.cache import default_folder
from ..bench.machine import proc_bytes
from ..errors import BackendError, Blip2rtError, OptionError
from ..install_hints import pip_install
from ..loading import load
from ..native import kernel_level, native

_TENSORRT = ("tensorrt", "tensorrt-rtx", "tensorrt_rtx")
_MIN_MEMORY = 8 << 30  # bytes of memory and swap for building large plans
_ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")  # share files
_OK, _MISSING, _BROKEN = "ok", "missing", "broken"


@dataclass(frozen=True)
class Finding:
    """A line of the report. needed: nothing runs without it; the others are for TensorRT."""

    name: str
    state: str  # _OK, _MISSING or _BROKEN
    text: str
    fix: str = ""  # a command, or what to do
    needed: bool = False


def examine() -> list[Finding]:
    """Every finding, from the machine to TensorRT."""
    device = gpu.find()
    needed = [_machine(), _memory(), _native(), _onnxruntime(device)]
    if all(finding.state == _OK for finding in needed if finding.needed):
        needed.append(_captions())
    return [*needed, *_nvidia(device)]


def _nvidia(device: gpu.Gpu | str) -> list[Finding]:
    """What TensorRT needs; one line if there is no GPU and nothing made for one."""
    packages = (*_TENSORRT, "cuda-bindings")
    if isinstance(device, str) and gpu.l4t_release() is None and not any(map(_version, packages)):
        return [Finding("NVIDIA GPU", _OK, f"none is used: {device}")]
    return [*_driver(device), _cuda(), _tensorrt(device), _bindings(device), _cache()]


def report(findings: list[Finding]) -> tuple[str, int]:
    """The findings as a page of text, and the exit status."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.name.ljust(width)}  {finding.state.ljust(7)}  {finding.text}")
        if finding.fix:
            lines.append(f"{' ' * width}           -> {finding.fix}")
    bad = [finding for finding in findings if finding.state != _OK]
    fatal = any(finding.needed for finding in bad)
    lines.append("")
    if fatal:
        lines.append("blip2rt does not run here until this is fixed")
    else:
        gpu_too = any(finding.name == "TensorRT" for finding in findings) and not bad
        lines.append(f"captions run here, {'on the GPU too: backend trt' if gpu_too else 'on the CPU'}")
    return "\n".join(lines), 2 if fatal else 0


def to_dict(findings: list[Finding]) -> dict[str, Any]:
    """The findings for `--json`: {"runs": whether captions work here, "findings": [...]}."""
    runs = all(finding.state == _OK for finding in findings if finding.needed)
    rows = [{"mend" if key == "fix" else key: value for key, value in asdict(each).items()} for each in findings]
    return {"runs": runs, "findings": rows}


def _machine() -> Finding:
    release = gpu.l4t_release()
    jetson = f", Jetson Linux {release}" if release else ""
    text = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}{jetson}"
    good = (3, 10) <= sys.version_info[:2] <= (3, 14)
    return Finding("machine", _OK if good else _BROKEN, text, "" if good else "use Python 3.10 to 3.14", needed=True)


def _memory() -> Finding:
    """Memory and swap, which building large plans needs."""
    memory, free, swap = (proc_bytes("/proc/meminfo", key) or 0 for key in ("MemTotal", "MemAvailable", "SwapTotal"))
    if not memory:
        return Finding("memory", _OK, "unknown on this system")
    text = f"{memory / 1e9:.1f} GB, {free / 1e9:.1f} GB of it free, swap {swap / 1e9:.1f} GB"
    scarce = memory + swap < _MIN_MEMORY
    fix = "sudo fallocate -l 8G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile && sudo swapon /swapfile"
    return Finding("memory", _MISSING if scarce else _OK, text, fix if scarce else "")


def _native() -> Finding:
    """Whether the core is built, and its kernels for this processor."""
    fix = f"{pip_install()} (building needs a C++ compiler)"
    try:
        level, kernels = kernel_level(), native.processor_kernels()
    except OptionError as error:
        return Finding("native core", _BROKEN, str(error), needed=True)
    except BackendError:
        return Finding("native core", _MISSING, "not built", fix, needed=True)
    except ImportError as error:
        return Finding("native core", _BROKEN, str(error), fix, needed=True)
    return Finding("native core", _OK, f"built; level {level}; kernels: {', '.join(kernels)}", needed=True)


def _onnxruntime(device: gpu.Gpu | str) -> Finding:
    installed = {name: _version(name) for name in _ONNXRUNTIMES}
    have = [f"{name} {version}" for name, version in installed.items() if version]
    if len(have) > 1:
        remove = f"pip uninstall -y {' '.join(name for name in installed if installed[name])} && pip install "
        fix = f"{remove}onnxruntime"
        return Finding("ONNX Runtime", _BROKEN, f"{' and '.join(have)} overwrite each other", fix, needed=True)
    if not have:
        return Finding(
            "ONNX Runtime", _MISSING, "not installed: the core runs graphs itself", "pip install onnxruntime"
        )
    try:
        ort.open_runtime()
    except (Blip2rtError, ImportError) as error:
        fix, text = f"pip install --force-reinstall {have[0].partition(' ')[0]}", f"{have[0]}, but {error}"
        return Finding("ONNX Runtime", _BROKEN, text.partition(": pip install")[0], fix, needed=True)
    return Finding("ONNX Runtime", _OK, f"{have[0]}, and its library opens", needed=True)


def _captions() -> Finding:
    """Caption a picture with the embedded model."""
    started = time.perf_counter()
    try:
        load().caption(np.full((64, 64, 3), 128, np.uint8), max_new_tokens=4)
    except Blip2rtError as error:
        text, _, install = str(error).partition(": pip install ")
        fix = f"pip install {install}" if install else "blip2rt verify names altered files: install them again"
        return Finding("captions", _MISSING if install else _BROKEN, text, fix, needed=True)
    text = f"a grey picture is captioned in {time.perf_counter() - started:.1f} s"
    return Finding("captions", _OK, text, needed=True)


def _driver(device: gpu.Gpu | str) -> list[Finding]:
    """The driver and its GPU."""
    if isinstance(device, str):
        fix = "sudo apt install nvidia-jetpack" if gpu.l4t_release() else "install NVIDIA's driver, if there is a GPU"
        return [Finding("driver", _MISSING, device, fix)]
    driver = Finding("driver", _OK, f"runs CUDA up to {device.driver[0]}.{device.driver[1]}")
    shared = ", shared with the CPU" if device.integrated else ""
    return [driver, Finding("GPU", _OK, f"{device.name} ({device.sm}), {device.memory / 1e9:.1f} GB{shared}")]


def _cuda() -> Finding:
    """The toolkit, which is optional: the driver runs plans, and TensorRT's wheels include the rest."""
    toolkit = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    text = f"compiler at {os.path.realpath(toolkit)}" if toolkit else "no toolkit; not needed"
    return Finding("CUDA", _OK, text)


def _tensorrt(device: gpu.Gpu | str) -> Finding:
    """Which TensorRT is installed. Imported only if there is a GPU."""
    if isinstance(device, str):
        for package in _TENSORRT:
            module = package.replace("-", "_")
            if importlib.util.find_spec(module) is not None:
                return Finding("TensorRT", _OK, f"{module} {_version(package) or 'of the system'}")
        text = "not installed"
    else:
        try:
            return Finding("TensorRT", _OK, builder.identity(builder.load_tensorrt()))
        except BackendError as error:
            text, _, fix = str(error).partition(": ")
            if "not installed" not in text:
                return Finding("TensorRT", _BROKEN, text, fix)
    if gpu.l4t_release():
        fix = "sudo apt install python3-libnvinfer, and a virtual environment with --system-site-packages"
    elif isinstance(device, str):
        fix = "pip install tensorrt-rtx (checks graphs without a GPU)"
    else:
        fix = f"pip install tensorrt-cu{min(max(device.driver[0], 12), 13)}"
    return Finding("TensorRT", _MISSING, text, fix)


def _bindings(device: gpu.Gpu | str) -> Finding:
    """cuda-bindings, with which the backend trt calls the driver. Not imported."""
    version = _version("cuda-bindings")
    if version:
        return Finding("cuda-bindings", _OK, version)
    major = 12 if isinstance(device, str) else min(max(device.driver[0], 12), 13)
    return Finding("cuda-bindings", _MISSING, "not installed", pip_install(f"trt-cu{major}"))


def _cache() -> Finding:
    folder = default_folder()
    near = next(each for each in (folder, *folder.parents) if each.exists())
    if not os.access(near, os.W_OK):
        return Finding("plan cache", _BROKEN, f"{folder} cannot be written", "export BLIP2RT_CACHE=A_WRITABLE_FOLDER")
    return Finding("plan cache", _OK, f"{folder}, {shutil.disk_usage(near).free / 1e9:.1f} GB free")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
