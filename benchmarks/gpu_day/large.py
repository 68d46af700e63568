"""A large language model's step on the card, against the time that its memory needs for the weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from blip2rt import backends
from blip2rt.backends.trt import PlanSizes, plans
from blip2rt.bench import costs
from blip2rt.bundle import LLM, read

from . import device, loops
from .day import ROOT, Day, LeftOut
from .day import bundle as kept

_COPIED = 1 << 29  # bytes that the bandwidth is measured with


def bundle(day: Day, precision: str) -> Path:
    """A bundle of random weights, made once. Raises LeftOut: the exporter lacks something."""

    def make(path: Path) -> None:
        if day.geometry == "little":  # without the exporter, for a day on the stand-in
            from tests.tiny import trt as tiny

            tiny.write(path, tiny.weights_of(np.random.default_rng(0)), "trt", half=precision == "fp16")
            return
        command = [sys.executable, "-m", "export.synthetic", "--geometry", day.geometry, "--target", "trt", "--out",
                   str(path), "--precision", f"llm={precision}"]  # fmt: skip
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        if done.returncode:
            last = (done.stderr.strip() or "it says nothing").splitlines()[-1]
            raise LeftOut(f"{day.geometry} cannot be made: {last}")

    return kept(day.out / "bundles", f"{day.geometry}-{precision}", make)


def step(day: Day, precision: str, by: str) -> dict[str, Any]:
    """Milliseconds of a step, the bytes that it reads, and the least that these take at the card's bandwidth."""
    made = read(bundle(day, precision))
    spec = made.manifest.llm
    assert spec is not None
    engines = PlanSizes(max_batch=1, max_beams=1, capacity=min(128, spec.max_positions))
    weights, room = costs.of_graph(made.graph(LLM), {}, 1).weight_bytes, plans.estimate(made, engines)
    rate = device.bandwidth(device.open_cuda(), 1 << 20 if day.stand_in else _COPIED)
    heard, backend = loops.Heard(), backends.create("trt", made, device="cuda", engines=engines)
    prefix, _ = loops.inputs(made.path, 1)
    least = (weights + room.cache) / rate
    seconds = loops.step_seconds(backend, prefix, [[5, 6, 7]], 4, 44 if spec.max_positions > 100 else 24)
    refused = [each for each in heard.said if "cannot be captured" in each]
    return {
        "by": by, "precision": precision, "weights a step": weights, "keys and values": room.cache,
        "bandwidth": rate, "ms a step": round(1e3 * seconds, 4), "least ms": round(1e3 * least, 4),
        "of the limit": round(seconds / least, 2), "step": "enqueued anew" if refused else "a CUDA graph",
        "log": heard.said[:20],
    }  # fmt: skip
