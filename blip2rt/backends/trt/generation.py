"""Generations and conversations, in lanes that are lent to one of them at a time.

Knows lanes, and which images run together; what happens to these on the device is loop's.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ... import backends
from ...errors import BackendError
from .cuda import Cuda
from .decoder import Decoder
from .lane import Lane
from .loop import DeviceGeneration

if TYPE_CHECKING:
    from .. import Floats, Sequences, Token


class DecoderLane(Lane):
    """A lane and the decoder in it."""

    decoder: Decoder | None = None

    def close(self) -> None:
        with contextlib.suppress(BackendError):  # after a failure the device may refuse everything
            if self.decoder is not None:
                self.decoder.drop_graph()
                self.decoder = None
            super().close()


class Lanes:
    """Lends lanes: a free one, or a new one where none is free."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._free: list[DecoderLane] = []
        self._closed = False
        # The garbage collector gives lanes back, in the midst of whatever a thread does: of what is below, too.
        self._lock = threading.RLock()

    def take(self) -> DecoderLane:
        """Raises BackendError where the lanes are closed, or the device has no room for one more."""
        self._cuda.activate()
        with self._lock:
            if self._closed:
                raise BackendError(backends.CLOSED)
            if self._free:
                return self._free.pop()
        return DecoderLane(self._cuda)

    def give_back(self, lane: DecoderLane) -> None:
        for plan in lane.prepared:
            plan.keep_kernels()
        lane.prepared.clear()
        with self._lock:
            if not self._closed:
                self._free.append(lane)
                return
        lane.close()

    def close(self) -> None:
        """Give back what the lanes hold: the free ones' now, the lent ones' when they are given back."""
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
        for lane in free:
            lane.close()

    @contextlib.contextmanager
    def lend(self) -> Iterator[DecoderLane]:
        """Lend a lane for a block. A lane in which something failed is closed, and not lent again."""
        lane = self.take()
        try:
            yield lane
        except BaseException:
            lane.close()
            raise
        self.give_back(lane)


class Part(NamedTuple):
    """Images of a generation that run together."""

    start: int  # number of the first image
    batch: Any  # the core's SearchBatch
    prefix_embeds: Floats  # (B, Q, D)
    prompts: list[list[int]]


class Generation(backends.Generation):
    """A generation under way, in parts of as many images as the plans take at once: one part after the other."""

    def __init__(
        self,
        lanes: Lanes,
        decoder_of: Callable[[DecoderLane], Decoder],
        parts: Sequence[Part],
        forced_prefix: list[int],
        vocabulary: Any,
    ) -> None:
        self._lanes, self._decoder_of, self._parts = lanes, decoder_of, parts
        self._forced_prefix, self._vocabulary = forced_prefix, vocabulary
        self._current = 0
        self._steps = [0] * len(parts)
        self._running: DeviceGeneration | None = None
        self._lane: DecoderLane | None = None
        self._give_back: Any = None
        self.stepped = False

    @property
    def done(self) -> bool:
        return self._current == len(self._parts)

    def run(self) -> None:
        """Run to the end."""
        while not self.done:
            with self._failing():
                self._open().run()
            self._next()

    def step(self) -> list[Token]:
        if self.done:
            return []
        with self._failing():
            running = self._open()
            self.stepped = True
            added = running.step()
        self._steps[self._current] += 1
        start = self._parts[self._current].start
        if running.done:
            self._next()
        return [(start + image, draw, token) for image, draw, token in added]

    def results(self) -> Sequences:
        return [image for part in self._parts for image in part.batch.results()]

    def cut(self, image: int, tokens: int) -> bool:
        part = max(i for i, part in enumerate(self._parts) if part.start <= image)
        return tokens == self._steps[part]

    def close(self) -> None:
        """End where it is, and give the lane back."""
        if self._give_back is not None:
            self._give_back()
        self._lane = self._running = self._give_back = None
        self._current = len(self._parts)

    def _open(self) -> DeviceGeneration:
        """The part under way, begun where none is."""
        if self._lane is None:
            self._lane = self._lanes.take()
            # A generation that nobody runs to its end gives its lane back when it is collected.
            self._give_back = weakref.finalize(self, self._lanes.give_back, self._lane)
        if self._running is None:
            part, decoder = self._parts[self._current], self._decoder_of(self._lane)
            self._running = DeviceGeneration(
                decoder, part.batch, part.prefix_embeds, part.prompts, self._forced_prefix, self._vocabulary
            )
        return self._running

    def _next(self) -> None:
        self._running = None
        self._current += 1
        if self.done:
            self.close()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Where the block fails, close the lane and end: neither is used again."""
        try:
            yield
        except BaseException:
            if self._give_back is not None and self._lane is not None:
                self._give_back.detach()
                self._lane.close()
            self._lane = self._running = self._give_back = None
            self._current = len(self._parts)
            raise


class Chat(backends.Chat):
    """A conversation. The plans' cache holds one generation: what was said is read again with each question."""

    def __init__(
        self, begin: Callable[[Floats, list[list[int]], Mapping[str, Any]], Generation], prefix_embeds: Floats
    ) -> None:
        self._begin, self._prefix_embeds = begin, prefix_embeds
        self._said: list[int] = []
        self._last: tuple[Generation, list[int]] | None = None

    def ask(self, prompt: list[int], options: Mapping[str, Any]) -> Generation:
        said = list(self._said)
        if self._last is not None:
            generation, read = self._last
            generation.close()
            if generation.stepped:  # a question whose answer was never begun was not asked
                said += read + generation.results()[0][0][0]
        begun = self._begin(self._prefix_embeds, [said + prompt], options)
        self._said, self._last = said, (begun, prompt + options.get("forced_prefix", []))
        return begun
