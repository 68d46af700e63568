"""NVIDIA's libraries from pip packages, and the devices of the backend ort."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import blip2rt
from blip2rt.errors import OptionError
from tests.tiny.bundle import Tiny


@pytest.mark.parametrize(("device", "instead"), [("tpu", ""), ("cuda", "; cuda needs the backend trt and a bundle")])
def test_ort_runs_on_cpu_only(tiny: Tiny, device: str, instead: str) -> None:
    with pytest.raises(OptionError, match=f"device is '{device}': the backend ort runs on cpu{instead}"):
        blip2rt.load(tiny.path, device=device)
    assert blip2rt.load(tiny.path, device="cpu")


def test_pip_installed_nvidia_libraries_are_loaded(tmp_path: Path) -> None:
    """Libraries that depend on each other, without a search path."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")

    def build(folder: str, name: str, code: str, *needed: str) -> str:
        library = tmp_path / folder / name
        library.parent.mkdir(parents=True, exist_ok=True)
        source = tmp_path / f"{name}.c"
        source.write_text(code)
        command = [compiler, "-shared", "-fPIC", "-Wl,--no-as-needed", f"-Wl,-soname,{name}", str(source), *needed]
        subprocess.run([*command, "-o", str(library)], check=True)
        return str(library)

    (tmp_path / "nvidia").mkdir()
    runtime_library = build("nvidia/cuda_runtime/lib", "libcudart.so.12", "int cudart(void) { return 1; }")
    light = build("nvidia/cublas/lib", "libcublasLt.so.12", "int lt(void) { return 1; }", runtime_library)
    blas = build("nvidia/cublas/lib", "libcublas.so.12", "int cublas(void) { return 2; }", light)
    provider = build("capi", "libprovider.so", "int cublas(void); int two(void) { return cublas(); }", blas)
    (tmp_path / "nvidia" / "cublas" / "lib" / "libcufft.so.11").write_text("no library")
    code = (
        "import ctypes, sys\nfrom blip2rt.backends.trt import cuda_libraries\n"
        f"try: ctypes.CDLL({provider!r})\n"
        "except OSError: print('not found')\n"
        "print(len(cuda_libraries.preload()))\n"
        f"print(ctypes.CDLL({provider!r}).two())"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    before, count, after = done.stdout.split("\n")[:3]
    assert (before, after) == ("not found", "2") and int(count) >= 3, done.stdout + done.stderr
