"""Fixtures: bundles, and the machine, simulated or this one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")

from blip2rt.backends.trt import builder, cuda, gpu
from blip2rt.errors import BackendError
from tests.tiny import trt as tiny_trt
from tests.trt.machine import GPU, SEED, Case, Machine
from tests.trt.simulated import Driver, TensorRT


@pytest.fixture(scope="session")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """ "tiny", or a family of tests/tiny/llm_configs.py, which takes torch."""
    cases: dict[str, Case] = {}

    def make(name: str) -> Case:
        if name not in cases:
            where = tmp_path_factory.mktemp(name)
            if name == "tiny":
                weights = tiny_trt.random_llm_weights(np.random.default_rng(SEED))
                paths = [tiny_trt.write(where / target, weights, target) for target in ("ort", "trt")]
            else:
                for module in ("torch", "transformers", "onnxscript"):
                    pytest.importorskip(module)
                from tests.tiny.language_models import build

                model = build(name, SEED)
                model.get_output_embeddings().weight.data.mul_(3)  # larger score differences: fewer near ties
                paths = [tiny_trt.write_model(where / target, model, target) for target in ("ort", "trt")]
            cases[name] = Case(*paths)
        return cases[name]

    return make


@pytest.fixture
def tiny(case_of: Callable[[str], Case]) -> Case:
    return case_of("tiny")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    found = Machine(driver := Driver(), TensorRT(driver))
    monkeypatch.setattr(builder, "load_tensorrt", lambda: found.trt)
    monkeypatch.setattr("blip2rt.backends.trt.backend.load_bindings", lambda: found.driver)
    monkeypatch.setattr("blip2rt.backends.trt.cli.load_bindings", lambda: found.driver)
    monkeypatch.setattr(gpu, "find", lambda: GPU)
    monkeypatch.setenv("BLIP2RT_CACHE", str(tmp_path / "engines"))
    return found


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.gpu)])
def any_machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine | None:
    """The simulated machine; with `pytest -m gpu`, the real one, as None."""
    if request.param == "simulated":
        found: Machine = request.getfixturevalue("machine")
        return found
    if isinstance(found_gpu := gpu.find(), str):
        pytest.skip(f"needs a GPU: {found_gpu}")
    pytest.importorskip("cuda.bindings.driver", reason="needs cuda-bindings: pip install 'blip2rt[trt-cu12]', or -cu13")
    try:
        builder.load_tensorrt()
    except BackendError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("BLIP2RT_CACHE", str(tmp_path / "engines"))
    cuda.Device(cuda.load_bindings())  # a failure is not skipped
    return None
