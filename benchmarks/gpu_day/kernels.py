"""Compares the loop's kernels on the card with the CPU's results in random cases, and times them.

python -m benchmarks.gpu_day.kernels --turns 3     # the process that compute-sanitizer runs
"""

from __future__ import annotations

import argparse
import ctypes
import random
import sys
from functools import partial
from typing import Any

import numpy as np

from blip2rt.backends.trt.lane import Lane
from blip2rt.backends.trt.search import Kernels, SearchMemory
from blip2rt.native import native

from . import device

_VOCABULARIES = (40, 777, 50304)
_TIE_TOLERANCE = 1e-5  # rounding may change the order of scores closer than this


class Chooser:
    """A search on the card that reads logits from the host: a decoder's steps without a model."""

    def __init__(self, lane: Lane, kernels: Kernels, batch: Any, vocab: int, vocabulary: Any) -> None:
        self.lane, self.kernels, self.batch, self.k = lane, kernels, batch, min(64, vocab)
        self.memory = SearchMemory(lane, batch, vocab, vocabulary)
        self.rows = self.memory.answers * self.memory.beams
        for name, dtype in (("tokens", np.int64), ("positions", np.int64), ("parents", np.int32), ("done", np.int32)):
            lane.upload(name, np.zeros(self.rows, dtype))
        lane.upload("logits", np.zeros((self.rows, vocab), np.float32))
        lane.upload("lengths", np.full(self.memory.answers, 5, np.int32))
        lane.upload("images", np.array(self.memory.images, np.int32))

    def feed(self, logits: np.ndarray[Any, Any], first: bool) -> None:
        """Upload logits, (images, V) in the first step and then (rows, V), with their top-k and log-sum-exp."""
        order = np.argsort(-logits, axis=1, kind="stable")[:, : self.k]
        largest = logits.max(1)
        total = np.log(np.exp(logits - largest[:, None], dtype=np.float64).sum(1)) + largest
        self.lane.upload("prompt.logits" if first else "logits", logits)
        self.lane.upload("top.logits", np.take_along_axis(logits, order, 1))
        self.lane.upload("top.tokens", order.astype(np.int64))
        self.lane.upload("top.sum", total.astype(np.float32))

    def launch(self, first: bool) -> None:
        address = self.lane.address
        prompts = (address("prompt.logits"), address("images")) if first else (0, 0)
        names = "top.logits top.tokens top.sum lengths tokens positions parents done".split()
        addresses = address("plan"), address("logits"), *prompts, *map(address, names)
        grid = (self.memory.answers, 1)
        self.kernels.launch("choose", grid, self.lane.stream, *addresses, ctypes.c_int(self.k))


def check(cuda: Any, turns: int, seed: int = 0) -> dict[str, Any]:
    """Run random cases of every kernel. Return every case that differs from the CPU, and the number of near ties."""
    kernels, compiled = device.open_kernels(cuda)
    rng, differ, near = random.Random(seed), [], 0
    for turn in range(turns):
        with device.lane(cuda) as lane:
            vocab = _VOCABULARIES[turn % (3 if turn % 9 == 2 else 2)]  # rarely the large one, which is slow on a CPU
            differences, ties = _compare_searches(lane, kernels, vocab, random_options(rng, vocab), turn)
            differ += differences
            near += ties
            differ += _compare_copies(lane, kernels, np.random.default_rng(seed + turn), turn)
    return {"compiled": compiled, "turns": turns, "differ": differ, "near": near}


def random_options(rng: random.Random, vocab: int) -> dict[str, Any]:
    """Random generation options of every kind that the kernels support."""
    ids = [rng.randrange(vocab) for _ in range(6)]
    options: dict[str, Any] = {"max_new_tokens": rng.randint(2, 8), "num_beams": rng.choice([1, 1, 2, 3, 5])}
    options |= {"eos_token_ids": ids[:2], "length_penalty": rng.choice([1.0, -1.0, 2.0])}
    if rng.random() < 0.5:
        options |= {"do_sample": True, "seed": rng.randrange(10**6), "temperature": rng.uniform(0.5, 2)}
        options |= {"top_k": rng.choice([0, rng.randint(1, vocab)]), "top_p": rng.choice([1.0, rng.random()])}
        options["min_p"] = rng.choice([0.0, 0.2 * rng.random()])
        if options["num_beams"] == 1:
            options["num_return_sequences"] = rng.randint(1, 3)
    penalty, bad_words = {"repetition_penalty": rng.choice([0.7, 1.5])}, {"bad_words_ids": [ids[2:3], ids[3:5]]}
    return options | rng.choice([{}, penalty, {"no_repeat_ngram_size": 2}, bad_words, {"min_new_tokens": 4}])


def _compare_searches(
    lane: Lane, kernels: Kernels, vocab: int, options: dict[str, Any], turn: int
) -> tuple[list[str], int]:
    """Step the same search on the card and on the CPU. Return (differences, near ties decided differently)."""
    images, rng, draw = 2, np.random.default_rng(turn), random.Random(turn)
    vocabulary = native().Vocabulary([bytes([97 + i % 23]) * (1 + i % 2) for i in range(vocab)])
    if draw.random() < 0.4:
        options = {**options, "stop_strings": [b"ab", b"c"], "vocabulary": vocabulary}
    timeout_step = draw.choice([0, options["max_new_tokens"]])  # the step at which max_time passes; 0: never
    on_cpu, on_card = (native().SearchBatch(images, [3, 4], vocab, options) for _ in range(2))
    chooser = Chooser(lane, kernels, on_card, vocab, vocabulary)
    case = f"choose, turn {turn}, vocabulary {vocab}, {options}"
    for step in range(options["max_new_tokens"]):
        first, rows = step == 0, images if step == 0 else chooser.rows
        logits = (rng.normal(size=(rows, vocab)) * 3).astype(np.float32)
        last = step + 2 == timeout_step
        if last:
            chooser.memory.mark_last_step()
        chooser.feed(logits, first)
        chooser.launch(first)
        chooser.memory.fetch()
        on_cpu.advance(logits[chooser.memory.images].copy() if first else logits.copy(), last)
        actual, expected = on_card.results(), on_cpu.results()
        scores = [np.array([score for image in each for _, score in image]) for each in (actual, expected)]
        if [[text for text, _ in image] for image in actual] != [[text for text, _ in image] for image in expected]:
            near = len(scores[0]) == len(scores[1]) and np.allclose(
                scores[0], scores[1], _TIE_TOLERANCE, _TIE_TOLERANCE
            )
            if near:
                return [], 1
            return [f"{case}, step {step}: {actual} instead of {expected}"], 0
        if not np.allclose(scores[0], scores[1], rtol=1e-4, atol=1e-4):
            return [f"{case}: scores {scores[0]} instead of {scores[1]}"], 0
        if on_cpu.done != on_card.done:
            return [f"{case}, step {step}: only one of the searches is done"], 0
        if on_cpu.done:
            break
    return [], 0


def _compare_copies(lane: Lane, kernels: Kernels, rng: np.random.Generator, turn: int) -> list[str]:
    """Compare scatter, reorder and spread with numpy."""
    images, beams, heads, capacity, length, width, tensors = 2, 3, 2, 12, 4, int(rng.integers(1, 9)), 4
    rows = images * beams
    fresh = rng.integers(0, 2**31, (tensors, images, heads, length, width)).astype(np.uint32)
    cache = rng.integers(0, 2**31, (tensors, rows, heads, capacity, width)).astype(np.uint32)
    mask, counts = np.full((rows, capacity), -1e9, np.float32), rng.integers(1, length + 1, images)
    sources = np.repeat(np.arange(images), beams)
    expected, expected_mask = cache.copy(), mask.copy()
    for row, image in enumerate(sources):
        expected[:, row, :, : counts[image]] = fresh[:, image, :, : counts[image]]
        expected_mask[row, : counts[image]] = 0
    arrays: dict[str, Any] = {
        "fresh": fresh,
        "cache": cache,
        "mask": mask,
        "sources": sources.astype(np.int32),
        "last": counts - 1,
    }
    on_card = {name: lane.upload(name, array) for name, array in arrays.items()}
    addresses = [tensor.address for tensor in on_card.values()]
    fresh_address, cache_address, _, sources_address, _ = addresses
    grid, stream = (rows, tensors), lane.stream
    sizes = [ctypes.c_int(n) for n in (heads, length, capacity, width)]
    kernels.launch("scatter", grid, stream, *addresses, 0, fresh[0].size, cache[0].size, *sizes)
    differ = []
    if (lane.download(on_card["cache"]) != expected).any() or (lane.download(on_card["mask"]) != expected_mask).any():
        differ.append(f"scatter, turn {turn}")

    first_rows = np.repeat(np.arange(images) * beams, beams)
    drawn = np.repeat([rng.integers(beams) for _ in range(images)], beams) + first_rows
    parents = np.where(rng.random(rows) < 0.5, drawn, np.arange(rows))
    parents = np.where(parents[parents] == parents, parents, np.arange(rows))  # a parent is not overwritten
    for row, parent in enumerate(parents):
        begin = counts[row // beams]
        expected[:, row, :, begin:9] = expected[:, parent, :, begin:9]
    plan = np.zeros(16, np.int32)
    plan[13] = beams
    tables = [parents.astype(np.int32), counts.astype(np.int32), np.full(rows, 9)]
    names = ("parents", "lengths", "positions")
    uploaded = [lane.upload(name, array).address for name, array in zip(names, tables, strict=True)]
    plan_address = lane.upload("plan", plan).address
    sizes = [ctypes.c_int(n) for n in (heads, capacity, width)]
    kernels.launch("reorder", grid, stream, plan_address, cache_address, *uploaded, cache[0].size, *sizes)
    if (lane.download(on_card["cache"]) != expected).any():
        differ.append(f"reorder, turn {turn}, parents {parents}")

    words = heads * length * width
    target = lane.upload("target", np.zeros((tensors, rows, words), np.uint32))
    copy = fresh_address, target.address, sources_address, fresh[0].size, rows * words, ctypes.c_int(words)
    kernels.launch("spread", grid, stream, *copy)
    if (lane.download(target) != fresh.reshape(tensors, images, words)[:, sources]).any():
        differ.append(f"spread, turn {turn}")
    return differ


def measure_kernels(cuda: Any, small: bool) -> dict[str, float]:
    """Microseconds of each kernel at the sizes of OPT-2.7B, or of a small model."""
    kernels, _ = device.open_kernels(cuda)
    vocab, heads, capacity, words, tensors, count = (300, 4, 64, 8, 4, 5) if small else (50304, 32, 256, 40, 64, 100)
    rows = 3
    times = {}
    with device.lane(cuda) as lane:
        stream, grid = lane.stream, (rows, tensors)

        def measure(name: str, *arguments: Any) -> None:
            launch = partial(kernels.launch, name, grid, stream, *arguments)
            times[name] = device.seconds_each(lane, launch, count)

        cache = lane.buffer("cache", tensors * rows * heads * capacity * words * 4)
        fresh = lane.buffer("fresh", tensors * rows * heads * words * 4)
        mask = lane.buffer("mask", rows * capacity * 4)
        positions = lane.upload("positions", np.full(rows, 40)).address
        image_words, row_words = heads * capacity * words, heads * words
        sizes = [ctypes.c_int(each) for each in (heads, 1, capacity, words)]
        strides = rows * row_words, rows * image_words
        measure("scatter", fresh, cache, mask, 0, 0, positions, *strides, *sizes)
        plan = np.zeros(16, np.int32)
        plan[13] = rows
        plan_address = lane.upload("plan", plan).address
        parents = lane.upload("parents", np.zeros(rows, np.int32)).address
        begin = lane.upload("begin", np.full(1, 36, np.int32)).address
        sizes = [ctypes.c_int(each) for each in (heads, capacity, words)]
        measure("reorder", plan_address, cache, parents, begin, positions, rows * image_words, *sizes)
        sources = lane.upload("sources", np.zeros(rows, np.int32)).address
        prompts = lane.buffer("prompts", tensors * image_words * 4)
        copy = prompts, cache, sources, image_words, rows * image_words, ctypes.c_int(image_words)
        measure("spread", *copy)
    kinds: dict[str, dict[str, Any]] = {
        "greedy": {"num_beams": 1},
        "3 beams": {"num_beams": 3},
        "top_p 0.9": {"do_sample": True, "top_p": 0.9},
    }
    logits = (np.random.default_rng(0).normal(size=(3, vocab)) * 3).astype(np.float32)
    for name, options in kinds.items():
        with device.lane(cuda) as lane:
            batch = native().SearchBatch(1, [], vocab, {"max_new_tokens": 1000, "eos_token_ids": [], **options})
            chooser = Chooser(lane, kernels, batch, vocab, None)
            chooser.feed(logits[:1], True)
            chooser.launch(True)
            chooser.feed(logits[: chooser.rows], False)
            times[f"choose, {name}"] = device.seconds_each(lane, partial(chooser.launch, False), count)
    return {name: round(each * 1e6, 2) for name, each in times.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3)
    found = check(device.open_cuda(), parser.parse_args().turns)
    print(found)
    return 1 if found["differ"] else 0


if __name__ == "__main__":
    sys.exit(main())
