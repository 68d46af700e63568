"""`backend="ort", device="cuda"`: what can be tried without a GPU, and marked `gpu` what cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import blip2rt
from blip2rt.backends.trt import gpu
from blip2rt.errors import BackendError, OptionError
from tests.engines.native import Session, runtime
from tests.engines.native.compiled import compiled
from tests.seeds import new_seed
from tests.tiny.bundle import Tiny

ROOT = Path(__file__).parents[2]


def test_without_a_cuda_provider_it_is_one_line_with_the_fix(tiny: Tiny) -> None:
    if "CUDAExecutionProvider" in runtime().providers:
        pytest.skip("this ONNX Runtime has the CUDA provider")
    with pytest.raises(
        BackendError, match=r"device='cuda'.*CPUExecutionProvider.*pip install 'onnxruntime-gpu"
    ) as found:
        blip2rt.load(tiny.path, device="cuda")
    assert "\n" not in str(found.value)
    with pytest.raises(RuntimeError, match="CUDA"):  # what ONNX Runtime itself says
        Session(runtime(), str(tiny.path / "llm.onnx"), 1, cuda=True)


def test_other_devices_are_named(tiny: Tiny) -> None:
    with pytest.raises(OptionError, match="device is 'tpu': the backend ort runs on cpu and cuda"):
        blip2rt.load(tiny.path, device="tpu")
    assert blip2rt.load(tiny.path, device="cpu")


def test_nvidias_libraries_are_found_where_pip_puts_them(tmp_path: Path) -> None:
    """A provider without a path to its libraries, which need each other."""
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
        "import ctypes, sys\nfrom blip2rt import cuda_libraries\n"
        f"try: ctypes.CDLL({provider!r})\n"
        "except OSError: print('not found')\n"
        "print(len(cuda_libraries.preload()))\n"
        f"print(ctypes.CDLL({provider!r}).two())"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    before, count, after = done.stdout.split("\n")[:3]
    assert (before, after) == ("not found", "2") and int(count) >= 3, done.stdout + done.stderr


def test_rows_of_the_cache_on_the_device() -> None:
    """Through a stand-in of the CUDA runtime, whose copies are done when they are waited for."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    native, engines = ROOT / "tests" / "engines" / "native", ROOT / "engines"
    common = [compiler, "-std=c++17", "-O1", f"-I{engines}"]
    library = compiled([*common, "-shared", "-fPIC"], [native / "cudart_stand_in.cpp"], ".so")
    sources = [
        native / "cuda_memory.cpp",
        *(
            engines / f"{name}.cpp"
            for name in ("loop/kv_cache", "ort/call", "ort/tensor_memory", "ort/ort_api", "ort/text")
        ),
    ]
    program = compiled([*common, "-Wl,--no-as-needed", "-ldl"], sources)
    for _ in range(20):
        seed = new_seed()
        done = subprocess.run([program, library, str(seed)], capture_output=True, text=True)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}"
        assert "no room for 1125899906 MB of keys and values: out of memory" in done.stdout


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{"num_beams": 1}, {"num_beams": 3}, {"do_sample": True, "seed": 1}])
def test_the_same_captions_as_on_the_cpu(options: dict[str, object]) -> None:
    found = gpu.find()
    if isinstance(found, str):
        pytest.skip(f"needs a GPU: {found}")
    if "CUDAExecutionProvider" not in runtime().providers:
        pytest.skip("needs onnxruntime-gpu")
    photo = ROOT / "docs" / "photo.jpg"
    assert blip2rt.load(device="cuda").caption(photo, **options) == blip2rt.load().caption(photo, **options)
