"""ONNX Runtime in place of TensorRT, as far as possible without a GPU: its CPU provider on the simulated driver."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from benchmarks.gpu_day.loops import tokens
from blip2rt import backends
from blip2rt.backends.trt import builder, cuda_libraries, gpu, onnxruntime_shim, plans
from blip2rt.bundle import read
from blip2rt.errors import BackendError
from tests.tiny import trt as tiny_trt
from tests.tiny.bundle import D, Q
from tests.trt.gpu_stand_in import Driver, TensorRT
from tests.trt.machine import SEED, Machine, installed

H100 = gpu.Gpu("NVIDIA H100", (9, 0), 80 << 30, (13, 0), False, 132)


def test_onnxruntime_replaces_a_missing_tensorrt(monkeypatch, caplog):
    """Only with a CUDA provider. blip2rt-build accepts TensorRT only."""
    monkeypatch.setattr(builder, "MODULES", ("a_tensorrt_that_is_not_there",))
    if onnxruntime_shim.CUDA not in onnxruntime.get_available_providers():
        with pytest.raises(BackendError, match="to run without TensorRT, pip uninstall -y onnxruntime && "):
            builder.load_runner(None)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [onnxruntime_shim.CUDA])
    loaded: list[str] = []
    monkeypatch.setattr(cuda_libraries, "preload", lambda: loaded.append("NVIDIA's"))  # not found by the pip package
    found = builder.load_runner(None)
    assert loaded
    assert builder.identity(found) == f"onnxruntime {onnxruntime.__version__} with CUDAExecutionProvider"
    assert "replaces TensorRT: a_tensorrt" in caplog.text and not builder.builds_without_gpu(found)
    with pytest.raises(BackendError, match="is not installed"):
        builder.load_tensorrt()


def test_onnxruntime_replaces_a_tensorrt_without_support_for_the_card(monkeypatch, caplog, tiny_case):
    """For example tensorrt-rtx on an H100, or for fp32 on Turing. Supported cards keep TensorRT."""
    bundle = read(tiny_case.trt)
    assert {component.precision for component in bundle.manifest.components.values()} == {"fp32"}
    rtx = TensorRT(Driver(), rtx=True)
    monkeypatch.setattr(builder, "load_tensorrt", lambda name=None: rtx)
    monkeypatch.setattr(onnxruntime_shim, "find", lambda: None)
    monkeypatch.setattr(gpu, "find", lambda: H100)
    with pytest.raises(BackendError, match="tensorrt_rtx 1.7.0 does not support SM90"):
        plans.runner(bundle)
    monkeypatch.setattr(onnxruntime_shim, "find", lambda: "in its place")
    assert plans.runner(bundle) == "in its place" and "does not support SM90" in caplog.text
    monkeypatch.setattr(gpu, "find", lambda: replace(H100, compute_capability=(7, 5)))
    assert plans.runner(bundle) == "in its place"
    assert "multiplies no fp32 on SM75, this machine's GPU: export vision, qformer, llm in fp16; " in caplog.text
    half = {name: replace(each, precision="fp16") for name, each in bundle.manifest.components.items()}
    assert plans.runner(replace(bundle, manifest=replace(bundle.manifest, components=half))) is rtx
    monkeypatch.setattr(gpu, "find", lambda: replace(H100, compute_capability=(8, 6)))
    assert plans.runner(bundle) is rtx


def test_plan_without_its_graph_is_rejected(tmp_path: Path) -> None:
    executor = onnxruntime_shim.Executor(onnxruntime, "CPUExecutionProvider")
    log = builder.logger(executor)
    plan = json.dumps({"path": str(tmp_path / "llm.onnx"), "profiles": [{}]}).encode()
    assert executor.Runtime(log).deserialize_cuda_engine(plan) is None
    assert "no longer exists" in log.reason()


class SynchronousDriver(Driver):
    """A driver whose streams run work immediately, since ONNX Runtime's CPU provider does not wait for streams."""

    def cuStreamCreate(self, flags: int) -> tuple:
        error, stream = super().cuStreamCreate(flags)
        put = stream.put
        stream.put = lambda work: (put(work), stream.captured is None and stream.run())
        return error, stream


@pytest.fixture
def executing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """A machine with ONNX Runtime in place of TensorRT."""
    found = installed(monkeypatch, tmp_path, kind=SynchronousDriver)
    executor = onnxruntime_shim.Executor(onnxruntime, "CPUExecutionProvider")
    monkeypatch.setattr(builder, "load_tensorrt", lambda name=None: executor)
    return found


def test_bundle_moved_over_another_is_not_confused_with_it(executing, tmp_path, monkeypatch):
    """Plans contain the absolute path of their graph and a hash of it."""
    monkeypatch.chdir(tmp_path)
    options = {"max_new_tokens": 8, "eos_token_ids": []}
    prefix = np.random.default_rng(SEED).normal(size=(1, Q, D)).astype(np.float32)

    def says(path: str, target: str) -> Any:
        backend = backends.create(target, read(Path(path)), **({"device": "cuda"} if target == "trt" else {}))
        return tokens(backend.generate(prefix, [[5]], options))

    said = {}
    for version in (1, 2):
        weights = tiny_trt.random_llm_weights(np.random.default_rng(SEED + version))
        said[version] = says(str(tiny_trt.write(tmp_path / f"ort {version}", weights, "ort")), "ort")
        tiny_trt.write(Path("bundle"), weights, "trt")
        assert says("bundle", "trt") == said[version]
        if version == 1:
            Path("bundle").rename("old")
    assert said[1] != said[2] and says("old", "trt") == said[1]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert says("../bundle", "trt") == said[2]


def test_closed_lane_releases_its_session(executing: Machine, tmp_path: Path) -> None:
    path = tiny_trt.write(tmp_path / "bundle", tiny_trt.random_llm_weights(np.random.default_rng(SEED)), "trt")
    backend: Any = backends.create("trt", read(path), device="cuda")
    prefix = np.ones((1, Q, D), np.float32)
    assert backend.generate(prefix, [[5]], {"max_new_tokens": 3})
    engine = backend._plans["llm"]._loaded
    assert len(engine._sessions) == 1  # shared by the contexts of prompts and steps
    with pytest.raises(BackendError, match="not finite"):
        backend.generate(prefix * np.nan, [[5]], {"max_new_tokens": 3})
    assert len(engine._sessions) == 0
    assert backend.generate(prefix, [[5]], {"max_new_tokens": 3})
    backend.close()
    assert len(engine._sessions) == 0
