"""`backend="ort", device="cuda"`: what can be tried without a GPU, and marked `gpu` what cannot."""

from __future__ import annotations

import shutil
import subprocess
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
