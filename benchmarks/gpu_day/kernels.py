"""The loop's kernels on the card, held to the CPU's for random cases, and their times.

python -m benchmarks.gpu_day.kernels --turns 3     # what compute-sanitizer watches
"""

from __future__ import annotations

import argparse
import ctypes
import random
import sys
from typing import Any

import numpy as np

from blip2rt.backends.trt.lane import Lane
from blip2rt.backends.trt.search import Kernels, SearchMemory
from blip2rt.native import native

from . import device

_VOCABULARIES = (40, 777, 50304)
_NEAR = 1e-5  # scores so near each other are in an order that rounding decides


class Chooser:
    """A search on the card, fed with logits from here. Like the decoder's steps, without a model."""

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
        """logits (images, V) at first, then (rows, V), with what a graph says of them."""
        order = np.argsort(-logits, axis=1, kind="stable")[:, : self.k]
        largest = logits.max(1)
        total = np.log(np.exp(logits - largest[:, None], dtype=np.float64).sum(1)) + largest
        self.lane.upload("prompt.logits" if first else "logits", logits)
        self.lane.upload("top.logits", np.take_along_axis(logits, order, 1))
        self.lane.upload("top.tokens", order.astype(np.int64))
        self.lane.upload("top.sum", total.astype(np.float32))

    def launch(self, first: bool) -> None:
        address = self.lane.address
        self.kernels.launch(
            "choose", (self.memory.answers, 1), self.lane.stream, address("plan"), address("logits"),
            *((address("prompt.logits"), address("images")) if first else (0, 0)), address("top.logits"),
            address("top.tokens"), address("top.sum"), address("lengths"), address("tokens"), address("positions"),
            address("parents"), address("done"), ctypes.c_int(self.k),
        )  # fmt: skip


def check(cuda: Any, turns: int, seed: int = 0) -> dict[str, Any]:
    """Random cases of every kernel. Return how many there were, and every one that differs from the CPU."""
    kernels, compiled = device.open_kernels(cuda)
    rng, differ, near = random.Random(seed), [], 0
    for turn in range(turns):
        with device.lane(cuda) as lane:
            vocab = _VOCABULARIES[turn % (3 if turn % 9 == 2 else 2)]  # a large one is slow on a CPU
            found, undecided = _choices(lane, kernels, vocab, random_options(rng, vocab), turn)
            differ += found
            near += undecided
            differ += _moves(lane, kernels, np.random.default_rng(seed + turn), turn)
    return {"compiled": compiled, "turns": turns, "differ": differ, "near": near}


def random_options(rng: random.Random, vocab: int) -> dict[str, Any]:
    """Options of a generation, of every kind that the kernels know."""
    some = [rng.randrange(vocab) for _ in range(6)]
    options: dict[str, Any] = {"max_new_tokens": rng.randint(2, 8), "num_beams": rng.choice([1, 1, 2, 3, 5]),
                               "eos_token_ids": some[:2], "length_penalty": rng.choice([1.0, -1.0, 2.0])}  # fmt: skip
    if rng.random() < 0.5:
        options |= {"do_sample": True, "seed": rng.randrange(10**6), "temperature": rng.uniform(0.5, 2),
                    "top_k": rng.choice([0, rng.randint(1, vocab)]),
                    "top_p": rng.choice([1.0, rng.random()]),
                    "min_p": rng.choice([0.0, 0.2 * rng.random()])}  # fmt: skip
        if options["num_beams"] == 1:
            options["num_return_sequences"] = rng.randint(1, 3)
    options |= rng.choice([{}, {"repetition_penalty": rng.choice([0.7, 1.5])}, {"no_repeat_ngram_size": 2},
                           {"bad_words_ids": [some[2:3], some[3:5]]}, {"min_new_tokens": 4}])  # fmt: skip
    return options


def _choices(lane: Lane, kernels: Kernels, vocab: int, options: dict[str, Any], turn: int) -> tuple[list[str], int]:
    """The card and the native search take the same steps: (what differs, near ties that were decided differently)."""
    images, rng, draw = 2, np.random.default_rng(turn), random.Random(turn)
    vocabulary = native().Vocabulary([bytes([97 + i % 23]) * (1 + i % 2) for i in range(vocab)])
    if draw.random() < 0.4:
        options = {**options, "stop_strings": [b"ab", b"c"], "vocabulary": vocabulary}
    ends = draw.choice([0, options["max_new_tokens"]])  # the step that time ends; 0: none
    ours, theirs = (native().SearchBatch(images, [3, 4], vocab, options) for _ in range(2))
    chooser = Chooser(lane, kernels, theirs, vocab, vocabulary)
    for step in range(options["max_new_tokens"]):
        first, rows = step == 0, images if step == 0 else chooser.rows
        logits = (rng.normal(size=(rows, vocab)) * 3).astype(np.float32)
        last = step + 2 == ends
        if last:
            chooser.memory.mark_last_step()
        chooser.feed(logits, first)
        chooser.launch(first)
        chooser.memory.fetch()
        ours.advance(logits[chooser.memory.images].copy() if first else logits.copy(), last)
        got, want = theirs.results(), ours.results()
        scores = [np.array([score for image in each for _, score in image]) for each in (got, want)]
        if [[text for text, _ in image] for image in got] != [[text for text, _ in image] for image in want]:
            if len(scores[0]) == len(scores[1]) and np.allclose(scores[0], scores[1], rtol=_NEAR, atol=_NEAR):
                return [], 1
            return [f"choose, turn {turn}, vocabulary {vocab}, step {step}, {options}: {got} and not {want}"], 0
        if not np.allclose(scores[0], scores[1], rtol=1e-4, atol=1e-4):
            return [f"choose, turn {turn}, vocabulary {vocab}, {options}: scores {scores[0]} and not {scores[1]}"], 0
        if ours.done != theirs.done:
            return [f"choose, turn {turn}, vocabulary {vocab}, step {step}, {options}: it is done on one alone"], 0
        if ours.done:
            break
    return [], 0


def _moves(lane: Lane, kernels: Kernels, rng: np.random.Generator, turn: int) -> list[str]:
    """scatter, reorder and spread move words as numpy does."""
    images, beams, heads, capacity, length, width, tensors = 2, 3, 2, 12, 4, int(rng.integers(1, 9)), 4
    rows = images * beams
    fresh = rng.integers(0, 2**31, (tensors, images, heads, length, width)).astype(np.uint32)
    cache = rng.integers(0, 2**31, (tensors, rows, heads, capacity, width)).astype(np.uint32)
    mask, counts = np.full((rows, capacity), -1e9, np.float32), rng.integers(1, length + 1, images)
    sources = np.repeat(np.arange(images), beams)
    want, open_to = cache.copy(), mask.copy()
    for row, image in enumerate(sources):
        want[:, row, :, : counts[image]] = fresh[:, image, :, : counts[image]]
        open_to[row, : counts[image]] = 0
    held = {name: lane.upload(name, array) for name, array in (
        ("fresh", fresh), ("cache", cache), ("mask", mask), ("sources", sources.astype(np.int32)),
        ("last", counts - 1))}  # fmt: skip
    at, ints = {name: tensor.address for name, tensor in held.items()}, [ctypes.c_int(n) for n in (heads, length)]
    own = [ctypes.c_int(n) for n in (capacity, width)]
    kernels.launch("scatter", (rows, tensors), lane.stream, at["fresh"], at["cache"], at["mask"], at["sources"],
                   at["last"], 0, fresh[0].size, cache[0].size, *ints, *own)  # fmt: skip
    differ = []
    if (lane.download(held["cache"]) != want).any() or (lane.download(held["mask"]) != open_to).any():
        differ.append(f"scatter, turn {turn}")

    parents = np.concatenate([np.where(rng.random(beams) < 0.5, image * beams + rng.integers(beams),
                                       np.arange(beams) + image * beams) for image in range(images)])  # fmt: skip
    parents = np.where(parents[parents] == parents, parents, np.arange(rows))  # a parent is not overwritten
    for row, parent in enumerate(parents):
        begin = counts[row // beams]
        want[:, row, :, begin:9] = want[:, parent, :, begin:9]
    plan = np.zeros(16, np.int32)
    plan[13] = beams
    kernels.launch("reorder", (rows, tensors), lane.stream, lane.upload("plan", plan).address, at["cache"],
                   lane.upload("parents", parents.astype(np.int32)).address,
                   lane.upload("lengths", counts.astype(np.int32)).address,
                   lane.upload("positions", np.full(rows, 9)).address, cache[0].size, ctypes.c_int(heads),
                   *own)  # fmt: skip
    if (lane.download(held["cache"]) != want).any():
        differ.append(f"reorder, turn {turn}, parents {parents}")

    words = heads * length * width
    target = lane.upload("target", np.zeros((tensors, rows, words), np.uint32))
    kernels.launch("spread", (rows, tensors), lane.stream, at["fresh"], target.address, at["sources"], fresh[0].size,
                   rows * words, ctypes.c_int(words))  # fmt: skip
    if (lane.download(target) != fresh.reshape(tensors, images, words)[:, sources]).any():
        differ.append(f"spread, turn {turn}")
    return differ


def times(cuda: Any, small: bool) -> dict[str, float]:
    """Microseconds of each kernel in the sizes of OPT-2.7B, or of a little model."""
    kernels, _ = device.open_kernels(cuda)
    vocab, heads, capacity, words, tensors, count = (300, 4, 64, 8, 4, 5) if small else (50304, 32, 256, 40, 64, 100)
    rows = 3
    found = {}
    with device.lane(cuda) as lane:
        cache = lane.buffer("cache", tensors * rows * heads * capacity * words * 4)
        fresh = lane.buffer("fresh", tensors * rows * heads * words * 4)
        mask = lane.buffer("mask", rows * capacity * 4)
        at = lane.upload("at", np.full(rows, 40)).address
        sizes = [ctypes.c_int(each) for each in (heads, 1, capacity, words)]
        found["scatter"] = device.seconds_each(lane, lambda: kernels.launch(
            "scatter", (rows, tensors), lane.stream, fresh, cache, mask, 0, 0, at, rows * heads * words,
            rows * heads * capacity * words, *sizes), count)  # fmt: skip
        plan = np.zeros(16, np.int32)
        plan[13] = rows
        told = [lane.upload(name, array).address for name, array in (
            ("beams", plan), ("parents", np.zeros(rows, np.int32)), ("begin", np.full(1, 36, np.int32)))]  # fmt: skip
        found["reorder"] = device.seconds_each(lane, lambda: kernels.launch(
            "reorder", (rows, tensors), lane.stream, told[0], cache, *told[1:], at, rows * heads * capacity * words,
            ctypes.c_int(heads), ctypes.c_int(capacity), ctypes.c_int(words)), count)  # fmt: skip
        image, row = heads * capacity * words, lane.upload("sources", np.zeros(rows, np.int32)).address
        prompts = lane.buffer("prompts", tensors * image * 4)
        found["spread"] = device.seconds_each(lane, lambda: kernels.launch(
            "spread", (rows, tensors), lane.stream, prompts, cache, row, image, rows * image, ctypes.c_int(image)),
            count)  # fmt: skip
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
            found[f"choose, {name}"] = device.seconds_each(lane, lambda own=chooser: own.launch(False), count)  # type: ignore[misc]
    return {name: round(each * 1e6, 2) for name, each in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3)
    found = check(device.open_cuda(), parser.parse_args().turns)
    print(found)
    return 1 if found["differ"] else 0


if __name__ == "__main__":
    sys.exit(main())
