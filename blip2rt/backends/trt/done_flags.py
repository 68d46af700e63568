"""Copies of the device's `done` flags in page-locked host memory, each with an event that signals its arrival.

A lane allocates them once: allocating page-locked memory waits for all work on the device.
"""

import ctypes
from typing import Any

from .lane import Lane

STEPS_AHEAD = 1  # steps launched beyond the one that the host waits for, so that the device never idles


class DoneFlags:
    """Flags of at most `answers` answers, for STEPS_AHEAD steps and the one that the host waits for."""

    def __init__(self, lane: Lane, answers: int) -> None:
        self._lane, self._cuda, self._stride = lane, lane.cuda, answers * 4
        self._memory = self._cuda.allocate_host((STEPS_AHEAD + 1) * self._stride)
        self._events: list[Any] = [self._cuda.event() for _ in range(STEPS_AHEAD + 1)]
        self._next = 0

    def record(self, answers: int) -> int:
        """Enqueue a copy. Return its number."""
        number, lane = self._next, self._lane
        self._next = (number + 1) % len(self._events)
        address = self._memory + number * self._stride
        self._cuda.download(address, lane.address("done"), answers * 4, lane.stream)
        self._cuda.record(self._events[number], lane.stream)
        return number

    def all_set(self, number: int, answers: int) -> bool:
        """Wait for a copy. Return whether every answer has ended."""
        self._cuda.wait_event(self._events[number])
        return all((ctypes.c_int32 * answers).from_address(self._memory + number * self._stride))

    def close(self) -> None:
        """Free the memory, once the lane's work has ended."""
        self._lane.wait()
        for event in self._events:
            self._cuda.destroy_event(event)
        self._cuda.free_host(self._memory)
