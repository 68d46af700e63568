"""Compares a large language model's step with the time that the card's bandwidth needs for its weights."""

from pathlib import Path
from typing import Any

import numpy as np

from blip2rt import backends
from blip2rt.backends.trt import PlanSizes, plans
from blip2rt.bench import geometry
from blip2rt.bench.collect import step_bytes
from blip2rt.bundle import read
from blip2rt.errors import Blip2rtError

from . import device, loops
from .day import Day, Skipped

PRECISION = "vision=fp16,qformer=fp32"
_COPY_BYTES = 1 << 29  # of the bandwidth measurement


def bundle(day: Day, precision: str) -> Path:
    """A bundle of random weights, made once. Raises Skipped if the exporter fails."""
    if day.geometry == "little":  # does not need the exporter; for the simulated driver
        from tests.tiny import trt as tiny

        path, weights = day.out / "bundles" / f"little-{precision}", tiny.random_llm_weights(np.random.default_rng(0))
        return path if path.exists() else tiny.write(path, weights, "trt", half=precision == "fp16")
    try:
        return geometry.bundle(day.geometry, f"{PRECISION},llm={precision}", day.out / "bundles", "trt")
    except Blip2rtError as error:
        raise Skipped(f"{day.geometry} cannot be exported: {error}") from error


def step(day: Day, precision: str, by: str) -> dict[str, Any]:
    """Milliseconds of a step, the bytes that it reads, and their minimum time at the card's bandwidth."""
    opened = read(bundle(day, precision))
    spec = opened.manifest.llm
    assert spec is not None
    sizes = PlanSizes(max_batch=1, max_beams=1, capacity=min(128, spec.max_positions))
    weights, cache = step_bytes(opened), plans.estimate(opened, sizes).cache
    rate = device.bandwidth(device.open_cuda(), 1 << 20 if day.stand_in else _COPY_BYTES)
    log, backend = loops.LogCapture(), backends.create("trt", opened, device="cuda", plan_sizes=sizes)
    prefix, _ = loops.inputs(opened.path, 1)
    minimum = (weights + cache) / rate
    seconds = loops.step_seconds(backend, prefix, [[5, 6, 7]], 4, 44 if spec.max_positions > 100 else 24)
    times = {"ms per step": round(1e3 * seconds, 4), "minimum ms": round(1e3 * minimum, 4)}
    read_bytes = {"weight bytes per step": weights, "cache bytes": cache, "bandwidth": rate}
    found = {"by": by, "precision": precision, **read_bytes, **times, "of the limit": round(seconds / minimum, 2)}
    return {**found, "step": loops.step_kind(log), "log": log.messages[:20]}
