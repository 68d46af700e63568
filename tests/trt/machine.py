"""A tiny model as a bundle of either target, and the simulated machine that the backend trt finds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from benchmarks.gpu_day.loops import SIZES
from blip2rt import backends
from blip2rt.backends.trt import PlanSizes, cuda, gpu
from blip2rt.bundle import read
from tests.seeds import seed_of
from tests.tiny import trt as tiny_trt
from tests.trt.gpu_stand_in import Driver, Nvrtc, TensorRT

SEED = seed_of(__name__)
GPU = gpu.Gpu("Orin", (8, 7), 8 << 30, (12, 6), True, 16)


@dataclass
class Case:
    """A tiny model as a bundle of either target, in float32. "native", "FAMILY, native": its cache is in place."""

    ort: Path
    trt: Path
    name: str

    def native(self) -> Any:
        return backends.create("ort", read(self.ort), threads=1)

    def inputs(self, images: int) -> tuple[np.ndarray, list[list[int]]]:
        rng = np.random.default_rng(SEED)
        spec = read(self.ort).manifest.llm
        prefix = rng.normal(size=(images, spec.prefix_length, spec.hidden_size)).astype(np.float32)
        prompts = [rng.integers(4, spec.vocab_size, size).tolist() for size in rng.integers(0, 5, images)]
        return prefix, prompts


_cases: dict[str, Case] = {}


def case_of(name: str, folder: pytest.TempPathFactory) -> Case:
    if name not in _cases:
        where = folder.mktemp(name)
        if name in ("tiny", "native"):
            weights = tiny_trt.random_llm_weights(np.random.default_rng(SEED))
            paths = (
                tiny_trt.write(where / each, weights, each, in_place=(name, each) == ("native", "trt"))
                for each in ("ort", "trt")
            )
            return _cases.setdefault(name, Case(*paths, name))
        pytest.importorskip("torch")
        pytest.importorskip("transformers")
        pytest.importorskip("onnxscript")
        from tests.tiny.language_models import build

        family, _, native = name.partition(", ")
        model = build(family, SEED)
        model.get_output_embeddings().weight.data.mul_(3)  # larger score differences: fewer near ties
        targets = ("ort", "trt-native" if native else "trt")
        _cases[name] = Case(*(tiny_trt.write_model(where / target, model, target) for target in targets), name)
    return _cases[name]


@dataclass
class Machine:
    """The simulated machine that the backend finds."""

    driver: Driver
    trt: TensorRT

    def load(self, case: Case, sizes: PlanSizes = SIZES) -> Any:
        return backends.create("trt", read(case.trt), device="cuda", plan_sizes=sizes)


def installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rtx: bool = False, kind: type[Driver] = Driver
) -> Machine:
    """Make the backend find a machine, and store its plans in tmp_path. rtx: with tensorrt-rtx instead of tensorrt."""
    found = Machine(driver := kind(), TensorRT(driver, rtx))
    monkeypatch.setattr("blip2rt.backends.trt.builder.load_tensorrt", lambda name=None: found.trt)
    monkeypatch.setattr("blip2rt.backends.trt.builder.identity", lambda trt: f"tensorrt {trt.__version__}")
    monkeypatch.setattr("blip2rt.backends.trt.builder.builds_without_gpu", lambda trt: False)
    monkeypatch.setattr(cuda, "load_bindings", lambda: (found.driver, Nvrtc()))
    monkeypatch.setattr("blip2rt.backends.trt.gpu.find", lambda: GPU)
    monkeypatch.setenv("BLIP2RT_CACHE", str(tmp_path / "engines"))
    return found
