"""Ctrl-C and SIGTERM: a training ends after the step under way, is saved, and can go on. Knows signals only."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM)
_ONCE = 1.0  # seconds in which the same signal may come twice, from a terminal and from torchrun


class Interrupted(Exception):
    """A training that was ended by a signal, and saved. kept: its checkpoint."""

    def __init__(self, number: int, kept: str) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}, kept {kept}")
        self.code = 128 + number


class Ending:
    """Notes the signals that ask a training to end."""

    def __init__(self) -> None:
        self.asked = 0  # the signal that came
        self._when = 0.0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, the first signal is noted; Ctrl-C again ends at once."""
        if threading.current_thread() is not threading.main_thread():  # where signals cannot be taken
            yield
            return
        before = {number: signal.signal(number, self._note) for number in ENDING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = self.asked and time.monotonic() - self._when > _ONCE
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self._when = number, time.monotonic()


def leave_to_the_parent() -> None:
    """In a worker process: what reaches all processes of a terminal or a job is the training's, which ends its workers.

    The second SIGTERM ends the worker: it is the parent's.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_next_time)


def _end_next_time(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
