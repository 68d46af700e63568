"""Report an export's progress: a line for each step, and a bar for long ones."""

from __future__ import annotations

import contextlib
import sys
import threading
import time

_WIDTH = 30
_LINE_SECONDS = 10.0  # between lines of a bar without a terminal


class Progress(contextlib.AbstractContextManager["Progress"]):
    """Writes to standard error: `line` announces a step, `bar` shows how far it is.

    Inside its `with` block, a step that takes long, such as tracing, is announced again every few seconds.
    """

    def __init__(self) -> None:
        self._start = self._drawn = time.monotonic()
        self._open = False
        self._ended, self._step = threading.Event(), ""

    def __enter__(self) -> Progress:  # noqa: PYI034  # typing.Self came with Python 3.11
        threading.Thread(target=self._repeat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _repeat(self) -> None:
        while not self._ended.wait(1):
            if self._step and time.monotonic() - self._drawn >= _LINE_SECONDS:
                self.line(self._step)

    def line(self, text: str) -> None:
        """Announce a step."""
        self._drawn, self._step = time.monotonic(), text
        if self._open:
            print(file=sys.stderr)
            self._open = False
        print(f"[{self._elapsed()}] {text}", file=sys.stderr, flush=True)

    def bar(self, text: str, done: int, total: int) -> None:
        """Show that `done` of `total` is finished; redraws at most a few times a second."""
        now, terminal = time.monotonic(), sys.stderr.isatty()
        if done < total and now - self._drawn < (0.2 if terminal else _LINE_SECONDS):
            return
        self._drawn = now
        share = done / max(total, 1)
        if not terminal:
            if done < total:
                self.line(f"{text}: {share:.0%}")
            return
        full = round(_WIDTH * share)
        filled = "#" * full + "-" * (_WIDTH - full)
        print(f"\r[{self._elapsed()}] {text}: {filled} {share:4.0%}", end="", file=sys.stderr, flush=True)
        self._open = True

    def _elapsed(self) -> str:
        return f"{time.monotonic() - self._start:6.1f} s"
