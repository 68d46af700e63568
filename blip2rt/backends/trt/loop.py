"""One generation on the device, from prompts to texts.

The host launches the decoder's steps and looks, one step behind, whether all is done; a stream waits for each step.
The search lies in the core's SearchBatch: the host makes it, the device goes on with it, the host reads it.
"""

from __future__ import annotations

import ctypes
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from .cuda import Cuda, CudaError
from .decoder import Decoder, SearchMemory
from .lane import Lane

AHEAD = 1  # steps that are launched beyond the one whose end the host waits for: the device never waits


class DeviceGeneration:
    """One generation of at most `sizes.images` images in a decoder that is not used by another meanwhile."""

    def __init__(self, decoder: Decoder, batch: Any, prefix: np.ndarray[Any, Any], prompts: Sequence[list[int]],
                 given: list[int], vocabulary: Any) -> None:  # fmt: skip
        """prefix (B, Q, D); given: tokens that every answer begins with. The first step reads the prompts."""
        self._decoder, self._batch = decoder, batch
        self._prefix, self._prompts, self._given, self._vocabulary = prefix, prompts, given, vocabulary
        self._most = batch.plan["max_new_tokens"]
        self._deadline = time.monotonic() + batch.plan["max_time"]
        self._search: Any = None
        self._launched = 0
        self._told_last = False

    @property
    def done(self) -> bool:
        return bool(self._batch.done)

    def step(self) -> list[tuple[int, int, int]]:
        """Compute one token more. Return (image, draw, token id) of each that is settled."""
        self._decoder.lane.cuda.activate()
        self._launch()
        self._search.fetch()
        added: list[tuple[int, int, int]] = self._batch.added()
        return added

    def run(self) -> None:
        """Run to the end. The device is AHEAD steps ahead of what the host knows of it."""
        lane, answers = self._decoder.lane, len(self._batch.plan["images"])
        lane.cuda.activate()
        with _flags(lane, answers) as flags:
            known: deque[int] = deque()
            while self._launched < self._most:
                self._launch()
                known.append(flags.record(lane.address("done"), lane.stream))
                if self._told_last or (len(known) > AHEAD and flags.all_set(known.popleft())):
                    break
            self._search.fetch()

    def results(self) -> Any:
        return self._batch.results()

    def _launch(self) -> None:
        self._told_last = time.monotonic() >= self._deadline
        if self._launched == 0:
            self._read()
        else:
            if self._told_last:
                self._search.last()
            self._decoder.step()
        self._launched += 1

    def _read(self) -> None:
        decoder, sizes = self._decoder, self._decoder.sizes
        lane = decoder.lane
        self._search = SearchMemory(lane, self._batch, sizes.vocab, self._vocabulary)
        images = np.array(self._search.images)
        sources = np.repeat(images, self._search.beams)
        lane.upload("sources", sources.astype(np.int32))
        if sizes.cross is None:
            embeds, lengths = self._joined([prompt + self._given for prompt in self._prompts])
        else:
            embeds, lengths = self._joined(self._prompts)
            mask = (np.arange(embeds.shape[1]) < lengths[:, None]).astype(np.int64)
            decoder.encode(embeds, mask, sources)
            given = [sizes.start, *self._given]
            embeds = decoder.embed([given] * len(self._prompts))
            lengths = np.full(len(self._prompts), len(given))
        decoder.read(embeds, lengths, sources)
        if self._told_last:
            self._search.last()
        decoder.begin(self._search, lengths[images], images)

    def _joined(self, prompts: Sequence[list[int]]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """[prefix][prompt] of each image (B, S, D), and the lengths (B)."""
        embeds = np.concatenate([self._prefix, self._decoder.embed(prompts)], axis=1)
        return embeds, np.array([self._prefix.shape[1] + len(prompt) for prompt in prompts])


class _Flags:
    """Copies of the device's `done` in host memory, each with the event that says it is there."""

    def __init__(self, cuda: Cuda, answers: int) -> None:
        self._cuda, self._answers = cuda, answers
        self._bytes = answers * 4
        self._memory = cuda.allocate_host((AHEAD + 1) * self._bytes)
        self._events = [cuda.event() for _ in range(AHEAD + 1)]
        self._next = 0

    def record(self, done: int, stream: Any) -> int:
        """Ask for a copy. Return its number."""
        number = self._next
        self._next = (number + 1) % len(self._events)
        self._cuda.download(self._memory + number * self._bytes, done, self._bytes, stream)
        self._cuda.record(self._events[number], stream)
        return number

    def all_set(self, number: int) -> bool:
        """Wait for the copy. Return whether every answer is done."""
        self._cuda.wait_event(self._events[number])
        copy = (ctypes.c_int32 * self._answers).from_address(self._memory + number * self._bytes)
        return all(copy)

    def close(self) -> None:
        for event in self._events:
            self._cuda.destroy_event(event)
        self._cuda.free_host(self._memory)


@contextmanager
def _flags(lane: Lane, answers: int) -> Iterator[_Flags]:
    flags = _Flags(lane.cuda, answers)
    try:
        yield flags
    finally:
        with suppress(CudaError):  # a device that failed gives nothing back, and what failed is what is said
            lane.wait()
            flags.close()
