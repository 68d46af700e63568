"""Compares the loop's kernels on the card with the CPU's results in random cases.

python -m benchmarks.gpu_day.kernels --turns 3     # the process that compute-sanitizer runs
"""

import argparse
import ctypes
import random
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from blip2rt.backends.trt.lane import Lane
from blip2rt.backends.trt.search import Kernels, SearchMemory
from blip2rt.native import native

from . import device

IMAGES = 2
_VOCABULARIES = (40, 777, 50304)


class Chooser:
    """A search on the card that reads logits from the host: a decoder's steps without a model."""

    def __init__(self, lane: Lane, kernels: Kernels, batch: Any, vocab: int, vocabulary: Any = None) -> None:
        self.lane, self.kernels, self.batch, self.k = lane, kernels, batch, min(64, vocab)
        self.memory = SearchMemory(lane, batch, vocab, vocabulary)
        self.rows = self.memory.answers * self.memory.beams
        for name, dtype in (("tokens", np.int64), ("positions", np.int64), ("parents", np.int32)):
            lane.upload(name, np.zeros(self.rows, dtype))
        self.done = lane.upload("done", np.zeros(self.memory.answers, np.int32))
        lane.upload("logits", np.zeros((self.rows, vocab), np.float32))
        lane.upload("lengths", np.arange(5, 5 + self.memory.answers, dtype=np.int32))
        lane.upload("images", np.array(self.memory.images, np.int32))

    def feed(self, logits: np.ndarray[Any, Any], first: bool, falling: bool = False) -> None:
        """Upload logits, (images, V) in the first step and then (rows, V), with their top-k and log-sum-exp.

        falling: among equal logits, the top-k has the largest token first.
        """
        ids = np.broadcast_to(np.arange(logits.shape[1]) * (-1 if falling else 1), logits.shape)
        order = np.lexsort((ids, -logits), axis=1)[:, : self.k]
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
        vocab = _VOCABULARIES[turn % (3 if turn % 9 == 2 else 2)]  # rarely the large one, which is slow on a CPU
        numbers, options = np.random.default_rng(seed + turn), random_options(rng, vocab)
        vocabulary = native.Vocabulary([bytes([97 + i % 23]) * (1 + i % 2) for i in range(vocab)])
        if rng.random() < 0.4:
            options |= {"stop_strings": [b"ab", b"c"], "vocabulary": vocabulary}
        last = rng.choice([-1, options["max_new_tokens"] - 2])  # the step after which max_time passes
        with device.lane(cuda) as lane:
            chooser = partial(Chooser, lane, kernels, vocab=vocab, vocabulary=vocabulary)
            difference, tie = compare_searches(chooser, vocab, options, partial(random_logits, numbers, vocab), last)
            differ += [f"choose, turn {turn}, vocabulary {vocab}, {options}: {difference}"] * bool(difference)
            near += tie
            differ += [f"{name}, turn {turn}" for name in compare_copies(lane, kernels, numbers)]
    return {"compiled": compiled, "turns": turns, "differ": differ, "near": near}


def random_options(rng: random.Random, vocab: int, most_beams: int = 5, eos: list[int] | None = None) -> dict[str, Any]:
    """Random generation options of every kind that the kernels support. eos: end tokens (default: random ones)."""
    ids = [*(eos or [rng.randrange(vocab) for _ in range(2)]), *(rng.randrange(vocab) for _ in range(6))]
    beams, sampled = rng.choice([1, 1, 2, 3, most_beams]), rng.random() < 0.5
    options: dict[str, Any] = {"max_new_tokens": rng.randint(1, 9), "num_beams": beams}
    options |= {
        "eos_token_ids": rng.choice([[], ids[:1], ids[:2]]),
        "length_penalty": rng.choice([1.0, 0.0, -1.0, 2.0]),
    }
    options["early_stopping"] = rng.choice(["true", "false", "never"])
    if beams > 1 or sampled:
        options["num_return_sequences"] = rng.randint(1, beams if beams > 1 else 4)
    if sampled:
        options |= {"do_sample": True, "seed": rng.randrange(10**6), "temperature": rng.uniform(0.5, 2)}
        options |= {"top_k": rng.choice([0, 0, rng.randint(1, vocab)]), "top_p": rng.choice([1.0, rng.random()])}
        options["min_p"] = rng.choice([0.0, 0.0, 0.2 * rng.random()])
    half = [[token] for token in range(0, vocab, rng.choice([2, vocab]))]
    bad_words, ngrams = {"bad_words_ids": [ids[:1], ids[3:5], *half]}, {"no_repeat_ngram_size": rng.randint(1, 3)}
    penalty, prefix = {"repetition_penalty": rng.choice([0.7, 1.5])}, {"forced_prefix": ids[4:6]}
    return options | rng.choice([{}, {}, penalty, ngrams, bad_words, {"min_new_tokens": 3}, prefix])


def random_logits(rng: np.random.Generator, vocab: int, rows: int, spread: float = 3) -> np.ndarray[Any, Any]:
    return (rng.normal(size=(rows, vocab)) * spread).astype(np.float32)


def compare_searches(
    chooser_of: Callable[[Any], Chooser],
    vocab: int,
    options: dict[str, Any],
    logits: Callable[[int], np.ndarray[Any, Any]],
    last: int = -1,
    falling: bool = False,
    rounding: float = 1e-5,
) -> tuple[str, bool]:
    """Step the same search on the card and on the CPU. Return (what differs, whether rounding alone decided it).

    chooser_of: batch -> its Chooser; logits: number of rows -> their logits; last: the step marked as the last;
    falling: see Chooser.feed; rounding: relative error of the card's results.
    """
    on_cpu, on_card = (native.SearchBatch(IMAGES, [3, 4], vocab, options) for _ in range(2))
    chooser = chooser_of(on_card)
    steps: list[tuple[np.ndarray[Any, Any], bool]] = []
    for step in range(options["max_new_tokens"]):
        first, rows = step == 0, logits(IMAGES if step == 0 else chooser.rows)
        steps.append((rows[chooser.memory.images] if first else rows, step == last))
        if step == last:
            chooser.memory.mark_last_step()
        chooser.feed(rows, first, falling)
        chooser.launch(first)
        chooser.memory.fetch()
        on_cpu.advance(steps[-1][0].copy(), step == last)
        actual, expected = _chosen(on_card), _chosen(on_cpu)
        if actual != expected:
            if _rounding_decides(vocab, options, steps, expected, rounding):
                return "", True
            return f"step {step}: {actual} instead of {expected}", False
        scores = [np.array([score for image in each.results() for _, score in image]) for each in (on_card, on_cpu)]
        longer = options["max_new_tokens"] ** max(0, -options["length_penalty"])  # factor of a sum
        tolerance = 3 * rounding * longer * max(1, np.abs(steps[0][0]).max() / 3)
        if not np.allclose(scores[0], scores[1], rtol=10 * rounding, atol=tolerance):
            return f"step {step}: scores {scores[0]} instead of {scores[1]}", False
        done, added = bool(chooser.lane.download(chooser.done).all()), on_card.added()
        if (done, added) != (on_cpu.done, on_cpu.added()):
            return f"step {step}: new tokens or the end differ", False
        if done:
            break
    return "", False


def _chosen(batch: Any) -> tuple[list[list[list[int]]], bool]:
    return [[tokens for tokens, _ in image] for image in batch.results()], batch.done


def _rounding_decides(vocab: int, options: dict[str, Any], steps: list[Any], expected: Any, rounding: float) -> bool:
    """Whether scaling rows by rounding errors, which keeps ties, changes the CPU search's own choice."""
    numbers = np.random.default_rng(0)
    for _ in range(50):
        batch = native.SearchBatch(IMAGES, [3, 4], vocab, options)
        for rows, last in steps:
            if not batch.done:
                batch.advance((rows * (1 + numbers.normal(size=(len(rows), 1)) * rounding)).astype(np.float32), last)
        if _chosen(batch) != expected:
            return True
    return False


def compare_copies(lane: Lane, kernels: Kernels, rng: np.random.Generator) -> list[str]:
    """Compare scatter, reorder and spread with numpy. Return the names of the kernels that differ."""
    images, beams, heads, capacity, length, width, tensors = 2, 3, 2, 12, 4, int(rng.integers(1, 9)), 4
    rows, words, padding = images * beams, heads * length * width, 5  # words between tensors

    def random_tensors(*shape: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Memory of several tensors with padding between them, and a view of the tensors."""
        memory = rng.integers(0, 2**31, (tensors, int(np.prod(shape)) + padding)).astype(np.uint32)
        return memory, memory[:, :-padding].reshape(tensors, *shape)

    prompts, fresh = random_tensors(images, heads, length, width)
    steps, step = random_tensors(rows, heads, 1, width)
    caches, cache = random_tensors(rows, heads, capacity, width)
    targets, target = random_tensors(rows, words)
    mask, counts = np.full((rows, capacity), -1e9, np.float32), rng.integers(1, length + 1, images)
    sources, positions = np.repeat(np.arange(images), beams), rng.integers(length, capacity, rows)
    drawn = np.repeat(rng.integers(beams, size=images), beams) + sources * beams
    parents = np.where(rng.random(rows) < 0.5, drawn, np.arange(rows))
    parents = np.where(parents[parents] == parents, parents, np.arange(rows))  # a parent is not overwritten
    plan = np.zeros(16, np.int32)
    plan[13] = beams
    arrays = {"fresh": prompts, "step": steps, "cache": caches, "target": targets, "mask": mask, "plan": plan}
    arrays |= {"sources": sources.astype(np.int32), "parents": parents.astype(np.int32), "last": counts - 1}
    arrays |= {"positions": positions, "lengths": counts.astype(np.int32), "ends": np.full(rows, 9)}
    on_card = {name: lane.upload(name, array.copy()) for name, array in arrays.items()}

    def launch(name: str, addresses: str, *numbers: int) -> None:
        """addresses: names of arrays, - for null; numbers: two strides, except for reorder, and 32-bit counts."""
        pointers = [on_card[each].address if each != "-" else 0 for each in addresses.split()]
        strides, sizes = numbers[: 1 + (name != "reorder")], numbers[1 + (name != "reorder") :]
        kernels.launch(name, (rows, tensors), lane.stream, *pointers, *strides, *map(ctypes.c_int, sizes))

    def differs(name: str, expected: np.ndarray[Any, Any]) -> bool:
        return bool((lane.download(on_card[name]) != expected).any())

    stride = caches.shape[1]
    launch("scatter", "fresh cache mask sources last -", prompts.shape[1], stride, heads, length, capacity, width)
    launch("scatter", "step cache mask - - positions", steps.shape[1], stride, heads, 1, capacity, width)
    for row, image in enumerate(sources):
        cache[:, row, :, : counts[image]] = fresh[:, image, :, : counts[image]]
        cache[:, row, :, positions[row]] = step[:, row, :, 0]
        mask[row, [*range(counts[image]), positions[row]]] = 0
    differ = ["scatter"] * (differs("cache", caches) or differs("mask", mask))
    launch("reorder", "plan cache parents lengths ends", stride, heads, capacity, width)
    for row, parent in enumerate(parents):
        begin = counts[row // beams]
        cache[:, row, :, begin:9] = cache[:, parent, :, begin:9]
    differ += [f"reorder of {parents}"] * differs("cache", caches)
    launch("spread", "fresh target sources", prompts.shape[1], targets.shape[1], words)
    target[:] = fresh.reshape(tensors, images, words)[:, sources]
    return differ + ["spread"] * differs("target", targets)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3)
    found = check(device.open_cuda(), parser.parse_args().turns)
    print(found)
    sys.exit(1 if found["differ"] else 0)
