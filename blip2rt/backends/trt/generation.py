"""Generations and conversations, and the pool of lanes that they run in.

Decides which images run together; loop.py runs them on the device.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
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
    """A lane with a decoder."""

    decoder: Decoder | None = None

    def close(self) -> None:
        with contextlib.suppress(BackendError):  # a failed device may reject every call
            self.cuda.activate()
            if self.decoder is not None:
                self.decoder.close()
                self.decoder = None
            super().close()


class LanePool:
    """A pool of lanes that grows with the number of concurrent calls."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._free: list[DecoderLane] = []
        self._closed = False
        # Reentrant, because the garbage collector may release a lane while this thread holds the lock.
        self._lock = threading.RLock()

    def acquire(self) -> DecoderLane:
        """Return a free or new lane. Raises BackendError if the pool is closed or the device is out of memory."""
        self._cuda.activate()
        with self._lock:
            if self._closed:
                raise BackendError(backends.CLOSED)
            if self._free:
                return self._free.pop()
        return DecoderLane(self._cuda)

    def release(self, lane: DecoderLane) -> None:
        for plan in lane.plans_with_new_shapes:
            plan.save_kernels()
        lane.plans_with_new_shapes.clear()
        with self._lock:
            if not self._closed:
                self._free.append(lane)
                return
        lane.close()

    def close(self) -> None:
        """Free the memory of all lanes: of idle ones now, of busy ones when they are released."""
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
        for lane in free:
            lane.close()

    @contextlib.contextmanager
    def lane(self) -> Iterator[DecoderLane]:
        """Hold a lane within a `with` block. If the block raises, the lane is closed instead of reused."""
        lane = self.acquire()
        try:
            yield lane
        except BaseException:
            lane.close()
            raise
        self.release(lane)


class ImageGroup(NamedTuple):
    """Images of a generation that run together."""

    start: int  # number of the first image
    batch: Any  # the core's SearchBatch
    prefix_embeds: Floats  # (B, Q, D)
    prompts: list[list[int]]


class PlanGeneration(backends.Generation):
    """A running generation: groups of as many images as the plans allow, one group after the other."""

    def __init__(
        self,
        lanes: LanePool,
        decoder_of: Callable[[DecoderLane], Decoder],
        groups: Sequence[ImageGroup],
        forced_prefix: list[int],
        vocabulary: Any,
    ) -> None:
        self._lanes, self._decoder_of, self._groups = lanes, decoder_of, groups
        self._forced_prefix, self._vocabulary = forced_prefix, vocabulary
        self._current = 0
        self._steps = [0] * len(groups)
        self._running: DeviceGeneration | None = None
        self._lane: DecoderLane | None = None
        self._release: Any = None
        self.stepped = False

    @property
    def done(self) -> bool:
        return self._current == len(self._groups)

    def run(self) -> None:
        """Run to the end."""
        while not self.done:
            with self._close_on_error():
                self._start_group().run()
            self._next()

    def step(self) -> list[Token]:
        if self.done:
            return []
        with self._close_on_error():
            running = self._start_group()
            self.stepped = True
            added = running.step()
        self._steps[self._current] += 1
        start = self._groups[self._current].start
        if running.done:
            self._next()
        return [(start + image, draw, token) for image, draw, token in added]

    def results(self) -> Sequences:
        return [image for group in self._groups for image in group.batch.results()]

    def cut(self, image: int, tokens: int) -> bool:
        index = max(i for i, group in enumerate(self._groups) if group.start <= image)
        return tokens == self._steps[index]

    def close(self) -> None:
        """Stop the generation and release its lane."""
        if self._release is not None:
            self._release()
        self._lane = self._running = self._release = None
        self._current = len(self._groups)

    def _start_group(self) -> DeviceGeneration:
        """The running group, started if none is running."""
        if self._lane is None:
            self._lane = self._lanes.acquire()
            # An abandoned generation releases its lane when it is garbage-collected.
            self._release = weakref.finalize(self, self._lanes.release, self._lane)
        if self._running is None:
            group, decoder = self._groups[self._current], self._decoder_of(self._lane)
            self._running = DeviceGeneration(
                decoder, group.batch, group.prefix_embeds, group.prompts, self._forced_prefix, self._vocabulary
            )
        return self._running

    def _next(self) -> None:
        self._running = None
        self._current += 1
        if self.done:
            self.close()

    @contextlib.contextmanager
    def _close_on_error(self) -> Iterator[None]:
        """If the block raises, close the lane and end the generation."""
        try:
            yield
        except BaseException:
            if self._release is not None and self._lane is not None:
                self._release.detach()
                self._lane.close()
            self._lane = self._running = self._release = None
            self._current = len(self._groups)
            raise
