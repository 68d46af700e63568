"""What a run tells while it works: a line on a terminal, the faults, a summary. Knows numbers and names."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..command_line import complain
from ..errors import one_line
from .lines import Lines
from .pictures import Fault, Sources
from .walk import walk

EVERY = 0.2  # seconds between two lines on a terminal


@dataclass
class Counts:
    """Pictures of a run; what Index.add returns."""

    made: int = 0  # captioned, or embedded
    before: int = 0  # done by a run before
    failed: int = 0
    gone: int = 0  # that left an index

    @property
    def all(self) -> int:
        """Pictures that were met."""
        return self.made + self.before + self.failed

    @property
    def code(self) -> int:
        """The exit code: 0, 1 where some failed, 2 where all did."""
        return 0 if not self.failed else 1 if self.made or self.before else 2


class Bar:
    """A line on stderr, if that is a terminal: how many, how fast, how long still."""

    def __init__(self, sources: Sources, counts: Counts, printed: bool = False, shown: bool = True) -> None:
        """printed: captions go to standard output; where that is a terminal too, they are progress enough."""
        self._counts = counts
        self._shown = shown and sys.stderr.isatty() and not (printed and sys.stdout.isatty()) and not sources.single
        self._started = self._last = time.monotonic()
        self._total: int | None = None
        self._stop = False
        if self._shown and not sources.once:
            self._counter = threading.Thread(target=self._count, args=(sources,), name="blip2rt-count", daemon=True)
            self._counter.start()

    def _count(self, sources: Sources) -> None:
        """Walk ahead, for the number of all pictures alone."""
        total = 0
        for _ in walk(sources):
            total += 1
            if self._stop:
                return
        self._total = total

    def show(self) -> None:
        now = time.monotonic()
        if self._shown and now - self._last >= EVERY:
            self._last = now
            print(f"\r{self._line(now - self._started)}\x1b[K", end="", file=sys.stderr, flush=True)

    def _line(self, seconds: float) -> str:
        counts, worked = self._counts, self._counts.made + self._counts.failed
        rate = worked / max(seconds, 1e-9)
        of = "" if self._total is None else f" of {self._total:,}"
        line = f"{counts.all:,}{of} pictures, {rate:.1f} a second"
        if self._total is not None and rate > 0:
            line += f", {_clock((self._total - counts.all) / rate)} left"
        return line + (f", {counts.failed:,} failed" if counts.failed else "")

    def clear(self) -> None:
        """Take the line away, for another to be printed."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._last = 0.0

    def close(self) -> None:
        self._stop = True
        self.clear()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(max(0.0, seconds)) + 1, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Faults:
    """What failed: listed in a file, or said on stderr. Each run writes the file anew: what failed is tried again."""

    def __init__(self, path: str | None, bar: Bar, printed: bool = False, silent: bool = False) -> None:
        """printed: also as a JSON object on standard output. silent: counted alone."""
        self._bar, self._printed, self._silent = bar, printed, silent
        self._json = path is not None and path.endswith(".jsonl")
        self._lines = None if path is None else Lines(path, fresh=True)

    def add(self, fault: Fault) -> None:
        if self._printed:
            print(json.dumps({"image": fault.name, "error": fault.why}, ensure_ascii=False), flush=True)
        if self._silent:
            return
        if self._lines is None:
            self._bar.clear()
            complain("blip2rt", fault_line(fault))
            return
        row = {"image": fault.name, "error": fault.why}
        text = json.dumps(row) if self._json else f"{one_line(fault.name)}\t{one_line(fault.why)}"
        self._lines.append(text.encode("utf-8", "surrogateescape") + b"\n")

    def close(self) -> None:
        if self._lines is not None:
            self._lines.close()


def fault_line(fault: Fault) -> str:
    """A fault with its picture's name, which most of them say themselves."""
    why = one_line(fault.why)
    name = one_line(fault.name)
    return why if repr(fault.name)[1:-1] in why or name in why else f"{name}: {why}"


def summary(counts: Counts, verb: str, listed: str | None, told: Callable[[str], None]) -> None:
    """One line about a whole run."""
    parts = [f"{counts.made:,} {verb}"]
    if counts.before:
        parts.append(f"{counts.before:,} {'was' if counts.before == 1 else 'were'} done before")
    if counts.gone:
        parts.append(f"{counts.gone:,} {'is' if counts.gone == 1 else 'are'} gone")
    if counts.failed:
        parts.append(f"{counts.failed:,} failed" + (f" (listed in {listed})" if listed else ""))
    told(", ".join(parts))


def say(text: str) -> None:
    print(f"blip2rt: {text}", file=sys.stderr)
