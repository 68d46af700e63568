"""Ctrl-C and SIGTERM: a training finishes the current step, saves a checkpoint and ends."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from blip2rt.command_line import running

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_DUPLICATE_SECONDS = 1.0  # within which the terminal and torchrun may both deliver the same Ctrl-C


class Interrupted(BaseException):  # libraries handle an Exception
    """A signal ended the training, which saved `checkpoint`, or "" before its first step."""

    def __init__(self, number: int, checkpoint: str) -> None:
        state = f", saved {checkpoint}" if checkpoint else " before the first step"
        super().__init__(f"ended by {signal.Signals(number).name}{state}")
        self.code = 128 + number


@contextlib.contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Inside, the first SIGTERM raises Interrupted: a training that has not begun has nothing to save."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise Interrupted(number, "")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class StopSignals:
    """Remembers the signal that asked the training to stop."""

    def __init__(self) -> None:
        self.received = 0
        self._when = 0.0

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Inside, remember the first signal; a second Ctrl-C raises KeyboardInterrupt."""
        if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received, self._when = number, time.monotonic()
            if os.environ.get("RANK", "0") == "0":
                again = "; press Ctrl-C again to end at once" if number == signal.SIGINT else ""
                os.write(2, f"\n{running() or 'train'}: ending after this step{again}\n".encode())
        elif number == signal.SIGINT and time.monotonic() - self._when > _DUPLICATE_SECONDS:
            raise KeyboardInterrupt


def ignore_parent_signals() -> None:
    """In a worker process, ignore Ctrl-C and the first SIGTERM: they reach the training too, which ends its workers.

    The second SIGTERM comes from the training and ends the worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
