"""A tiny model as a bundle of either target, and the simulated machine that the backend trt finds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blip2rt import backends
from blip2rt.backends.trt import PlanSizes, gpu
from blip2rt.bundle import read
from tests.seeds import seed_of
from tests.trt.simulated import Driver, TensorRT

SEED = seed_of(__name__)
SIZES = PlanSizes(max_batch=2, max_beams=4, capacity=48)
GPU = gpu.Gpu("Orin", (8, 7), 8 << 30, (12, 6), True, 16)


@dataclass
class Case:
    """A tiny model as a bundle of either target, in float32."""

    ort: Path
    trt: Path

    def native(self) -> Any:
        return backends.create("ort", read(self.ort), threads=1)

    def load(self, sizes: PlanSizes = SIZES, **keywords: Any) -> Any:
        return backends.create("trt", read(self.trt), device="cuda", plan_sizes=sizes, **keywords)

    def inputs(self, images: int) -> tuple[np.ndarray, list[list[int]]]:
        rng = np.random.default_rng(SEED)
        spec = read(self.ort).manifest.llm
        prefix = rng.normal(size=(images, spec.prefix_length, spec.hidden_size)).astype(np.float32)
        prompts = [rng.integers(4, spec.vocab_size, size).tolist() for size in rng.integers(0, 5, images)]
        return prefix, prompts


@dataclass
class Machine:
    driver: Driver
    trt: TensorRT
