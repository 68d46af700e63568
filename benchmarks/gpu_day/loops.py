"""The loop on the card with a little model, held to the native loop on the CPU, and its times."""

from __future__ import annotations

import logging
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from blip2rt import backends
from blip2rt.backends.trt import PlanSizes
from blip2rt.bundle import read
from blip2rt.errors import BackendError

from . import day

SIZES = PlanSizes(max_batch=2, max_beams=4, capacity=48)
CASES: tuple[dict[str, Any], ...] = (
    {"num_beams": 1}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 2.0},
    {"do_sample": True, "seed": 1, "num_return_sequences": 3}, {"do_sample": True, "seed": 2, "top_p": 0.8, "top_k": 9},
    {"num_beams": 2, "repetition_penalty": 1.4}, {"num_beams": 1, "no_repeat_ngram_size": 2},
)  # fmt: skip
_TURNS = 3  # enqueued, captured, replayed


class Heard(logging.Handler):
    """What blip2rt's log says meanwhile."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []
        logging.getLogger("blip2rt").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(" ".join(record.getMessage().split()))


def bundle(folder: Path, kind: str) -> Path:
    """The same random model for ort, for trt, or "native": with a graph that writes its cache."""
    from tests.tiny import trt as tiny

    native, weights = kind == "native", tiny.weights_of(np.random.default_rng(0))
    target = "trt" if native else kind
    return day.bundle(folder, kind, lambda path: tiny.write(path, weights, target, in_place=native))


def inputs(bundle: Path, images: int = 3) -> tuple[Any, list[list[int]]]:
    """Random prefixes (images, Q, D) and prompts."""
    spec, rng = read(bundle).manifest.llm, np.random.default_rng(1)
    assert spec is not None
    prefix = rng.normal(size=(images, spec.prefix_length, spec.hidden_size)).astype(np.float32)
    return prefix, [rng.integers(4, spec.vocab_size, size).tolist() for size in range(images)]


def compare(device: Any, native: Any, prefix: Any, prompts: list[list[int]]) -> dict[str, Any]:
    """Every case on both, a few times each: where tokens differ, and are not near a tie."""
    faults, near = [], 0
    for case in CASES:
        options = {"max_new_tokens": 12, "eos_token_ids": [], **case}
        want = tokens(native.generate(prefix, prompts, options))
        for _ in range(_TURNS):
            if tokens(device.generate(prefix, prompts, options)) == want:
                continue
            if undecided(native, prefix, prompts, options, want):
                near += 1
            else:
                faults.append(f"other tokens than the CPU's for {case}")
                break
    return {"cases": len(CASES), "turns": _TURNS, "near ties": near, "faults": faults}


def undecided(native: Any, prefix: Any, prompts: list[list[int]], options: dict[str, Any], want: Any) -> bool:
    """Whether noise of the size of rounding changes what the native loop itself says."""
    rng = np.random.default_rng(2)
    noisy = [(prefix * (1 + rng.normal(size=prefix.shape) * 1e-5)).astype(np.float32) for _ in range(4)]
    return any(tokens(native.generate(each, prompts, options)) != want for each in noisy)


def tokens(sequences: Any) -> Any:
    return [[sequence for sequence, _ in image] for image in sequences]


def step_seconds(device: Any, prefix: Any, prompts: list[list[int]], few: int, many: int, beams: int = 1) -> float:
    """Seconds of a step: what `many` tokens take longer than `few`, by the tokens; the median of some turns."""
    times: dict[int, list[float]] = {few: [], many: []}
    for turn in range(6):
        for count in (few, many):
            options = {"max_new_tokens": count, "eos_token_ids": [], "num_beams": beams}
            started = time.perf_counter()
            device.generate(prefix, prompts, options)
            if turn:  # the first prepares
                times[count].append(time.perf_counter() - started)
    return (statistics.median(times[many]) - statistics.median(times[few])) / (many - few)


def on_trt(folder: Path) -> dict[str, Any]:
    """The backend trt with what is in TensorRT's place, whatever it is, and both kinds of its graphs."""
    found = _on(folder, "trt")
    try:
        native = _on(folder, "native")
    except BackendError as error:  # TensorRT before 10.15 has no such layers
        native = {"left out": str(error), "faults": []}
    found["faults"] += [f"the graph that writes its cache: {fault}" for fault in native["faults"]]
    return {**found, "the graph that writes its cache": native}


def _on(folder: Path, kind: str) -> dict[str, Any]:
    path = bundle(folder, kind)
    heard, native = Heard(), backends.create("ort", read(bundle(folder, "ort")), threads=1)
    device = backends.create("trt", read(path), device="cuda", engines=SIZES)
    prefix, prompts = inputs(path)
    found = compare(device, native, prefix, prompts)
    refused = [each for each in heard.said if "cannot be captured" in each]
    found["step"] = "a CUDA graph" if not refused else f"enqueued anew: {refused[0].rpartition(': ')[2]}"
    found["ms a step"] = round(1e3 * step_seconds(device, prefix[:1], prompts[:1], 4, 24), 4)
    found["log"] = heard.said[:20]
    return found
