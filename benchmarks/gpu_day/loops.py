"""Compares the device loop with the CPU's loop on a small model, and times it."""

import logging
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from blip2rt import backends
from blip2rt.backends.trt import PlanSizes
from blip2rt.bundle import read
from blip2rt.errors import BackendError

SIZES = PlanSizes(max_batch=2, max_beams=4, capacity=48)
CASES: tuple[dict[str, Any], ...] = (
    {"num_beams": 1},
    {"num_beams": 3},
    {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 2.0},
    {"do_sample": True, "seed": 1, "num_return_sequences": 3},
    {"do_sample": True, "seed": 2, "top_p": 0.8, "top_k": 9},
    {"num_beams": 2, "repetition_penalty": 1.4},
    {"num_beams": 1, "no_repeat_ngram_size": 2},
)
_TURNS = 3  # enqueued, captured, replayed


class LogCapture(logging.Handler):
    """Collects blip2rt's warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []
        logging.getLogger("blip2rt").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(" ".join(record.getMessage().split()))


def bundle(folder: Path, kind: str) -> Path:
    """The same random model for ort, for trt, or "native": for trt, with a graph that writes its cache in place."""
    from tests.tiny import trt as tiny

    native, path = kind == "native", folder / kind
    if not path.exists():
        weights = tiny.random_llm_weights(np.random.default_rng(0))
        tiny.write(path, weights, "trt" if native else kind, in_place=native)
    return path


def inputs(bundle: Path, images: int = 3) -> tuple[Any, list[list[int]]]:
    """Random prefixes (images, Q, D) and prompts."""
    spec, rng = read(bundle).manifest.llm, np.random.default_rng(1)
    assert spec is not None
    prefix = rng.normal(size=(images, spec.prefix_length, spec.hidden_size)).astype(np.float32)
    return prefix, [rng.integers(4, spec.vocab_size, size).tolist() for size in range(images)]


def compare(device: Any, native: Any, prefix: Any, prompts: list[list[int]]) -> dict[str, Any]:
    """Run every case on both backends several times. Return the cases whose tokens differ without a near tie."""
    faults, near = [], 0
    for case in CASES:
        options = {"max_new_tokens": 12, "eos_token_ids": [], **case}
        expected = tokens(native.generate(prefix, prompts, options))
        for _ in range(_TURNS):
            if tokens(device.generate(prefix, prompts, options)) == expected:
                continue
            if is_near_tie(native, prefix, prompts, options, expected):
                near += 1
            else:
                faults.append(f"tokens differ from the CPU's for {case}")
                break
    return {"cases": len(CASES), "turns": _TURNS, "near ties": near, "faults": faults}


def noisy(native: Any, prefix: Any, prompts: Any, options: dict[str, Any], noise: float) -> Iterator[Any]:
    """The CPU loop's results for prefixes with relative noise of about `noise`, one after the other."""
    rng = np.random.default_rng(2)
    for _ in range(50):
        shaken = (prefix * (1 + rng.normal(size=prefix.shape) * noise)).astype(np.float32)
        yield native.generate(shaken, prompts, options)


def is_near_tie(native: Any, prefix: Any, prompts: list[list[int]], options: dict[str, Any], expected: Any) -> bool:
    """Whether noise as small as rounding errors changes the CPU loop's own tokens."""
    return any(tokens(each) != expected for each in noisy(native, prefix, prompts, options, 1e-5))


def tokens(sequences: Any) -> Any:
    return [[sequence for sequence, _ in image] for image in sequences]


def step_seconds(device: Any, prefix: Any, prompts: list[list[int]], few: int, many: int, beams: int = 1) -> float:
    """Seconds of a step: the time difference of `many` and `few` tokens, divided by their number; medians."""
    times: dict[int, list[float]] = {few: [], many: []}
    for turn in range(6):
        for count in (few, many):
            options = {"max_new_tokens": count, "eos_token_ids": [], "num_beams": beams}
            started = time.perf_counter()
            device.generate(prefix, prompts, options)
            if turn:  # the first is a warm-up
                times[count].append(time.perf_counter() - started)
    return (statistics.median(times[many]) - statistics.median(times[few])) / (many - few)


def step_kind(log: LogCapture) -> str:
    """How steps are launched, according to the log."""
    failures = [message for message in log.messages if "cannot be captured" in message]
    return f"enqueued: {failures[0].rpartition(': ')[2]}" if failures else "CUDA graph"


def on_trt(folder: Path) -> dict[str, Any]:
    """Run both kinds of graphs on the backend trt, with TensorRT or its replacement."""
    results = _run(folder, "trt")
    try:
        in_place = _run(folder, "native")
    except BackendError as error:  # TensorRT before 10.15 has no such layers
        in_place = {"skipped": str(error), "faults": []}
    results["faults"] += [f"in-place cache: {fault}" for fault in in_place["faults"]]
    return {**results, "in-place cache": in_place}


def _run(folder: Path, kind: str) -> dict[str, Any]:
    path = bundle(folder, kind)
    log, native = LogCapture(), backends.create("ort", read(bundle(folder, "ort")), threads=1)
    device = backends.create("trt", read(path), device="cuda", plan_sizes=SIZES)
    prefix, prompts = inputs(path)
    results = compare(device, native, prefix, prompts)
    results["step"] = step_kind(log)
    results["ms per step"] = round(1e3 * step_seconds(device, prefix[:1], prompts[:1], 4, 24), 4)
    results["log"] = log.messages[:20]
    return results
