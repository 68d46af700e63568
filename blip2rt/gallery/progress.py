"""Progress of a run: a line on the terminal, the log of failures, a summary."""

import json
import sys
import threading
import time
from dataclasses import dataclass

from ..command_line import complain, show_json
from ..errors import one_line, utf8_name
from .output_files import AppendOnlyFile
from .sources import Failure, Sources
from .walk import walk

INTERVAL = 0.2  # seconds between updates of the line


@dataclass
class Counts:
    """The numbers of pictures in a run; the result of Index.add."""

    processed: int = 0  # captioned or embedded by this run
    skipped: int = 0  # done by an earlier run
    failed: int = 0
    removed: int = 0  # from an index
    cut: int = 0  # texts that max_time ended

    @property
    def total(self) -> int:
        """Pictures found."""
        return self.processed + self.skipped + self.failed

    @property
    def exit_code(self) -> int:
        """0, 1 if some pictures failed, 2 if all failed."""
        return 0 if not self.failed else 1 if self.processed or self.skipped else 2


class ProgressLine:
    """A line on standard error, if that is a terminal: pictures done, speed, time left."""

    def __init__(self, sources: Sources, counts: Counts, printed: bool = False, shown: bool = True) -> None:
        """printed: captions go to standard output; if that is a terminal too, they show the progress."""
        self._counts = counts
        self._shown = shown and sys.stderr.isatty() and not (printed and sys.stdout.isatty()) and not sources.single
        self._started = self._updated = time.monotonic()
        self._total: int | None = None
        self._stop = False
        if self._shown and not sources.once:
            self._counter = threading.Thread(target=self._count, args=(sources,), name="blip2rt-count", daemon=True)
            self._counter.start()

    def _count(self, sources: Sources) -> None:
        """Walk ahead to find the total number."""
        total = 0
        for _ in walk(sources):
            total += 1
            if self._stop:
                return
        self._total = total

    def show(self) -> None:
        now = time.monotonic()
        if self._shown and now - self._updated >= INTERVAL:
            self._updated = now
            print(f"\r{self._line(now - self._started)}\x1b[K", end="", file=sys.stderr, flush=True)

    def _line(self, seconds: float) -> str:
        counts = self._counts
        rate = (counts.processed + counts.failed) / max(seconds, 1e-9)
        of = "" if self._total is None else f" of {self._total:,}"
        line = f"{counts.total:,}{of} pictures, {rate:.1f} a second"
        if self._total is not None and rate > 0:
            line += f", {_clock((self._total - counts.total) / rate)} left"
        return line + (f", {counts.failed:,} failed" if counts.failed else "")

    def clear(self) -> None:
        """Erase the line before another one is printed."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._updated = 0.0

    def close(self) -> None:
        self._stop = True
        self.clear()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(max(0.0, seconds)) + 1, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class FailureLog:
    """Lists failures in a file or prints them on standard error. Each run starts a new list, since it retries them."""

    def __init__(self, path: str | None, line: ProgressLine, printed: bool = False, silent: bool = False) -> None:
        """printed: also print JSON objects on standard output. silent: report nothing."""
        self._line, self._printed, self._silent = line, printed, silent
        self._json = path is not None and path.endswith(".jsonl")
        self._file = None if path is None else AppendOnlyFile(path, truncate=True)

    def add(self, failure: Failure) -> None:
        row = {"image": utf8_name(failure.name), "error": failure.reason}
        if self._printed:
            show_json(row, flush=True)
        if self._silent:
            return
        if self._file is None:
            self._line.clear()
            complain("blip2rt", failure_line(failure))
            return
        line = f"{one_line(failure.name)}\t{one_line(failure.reason)}"
        self._file.append((json.dumps(row) if self._json else line).encode() + b"\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def failure_line(failure: Failure) -> str:
    """Return the reason, with the name of the picture unless the reason contains it."""
    name, reason = one_line(failure.name), one_line(failure.reason)
    return reason if repr(failure.name)[1:-1] in reason or name in reason else f"{name}: {reason}"


def summary(counts: Counts, verb: str, errors: str | None) -> str:
    """Return one line about a whole run. errors: the file that lists failures."""
    parts = [f"{counts.processed:,} {verb}"]
    if counts.skipped:
        parts.append(f"{counts.skipped:,} already done")
    if counts.removed:
        parts.append(f"{counts.removed:,} removed")
    if counts.cut:
        parts.append(f"{counts.cut:,} cut by --max-time")
    if counts.failed:
        parts.append(f"{counts.failed:,} failed" + (f" (listed in {errors})" if errors else ""))
    return ", ".join(parts)


def print_status(text: str) -> None:
    print(f"blip2rt: {text}", file=sys.stderr)
