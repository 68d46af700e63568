"""Progress bars on a terminal; elsewhere, such as in a log, a line every few seconds. Also a line for each phase."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_SECONDS = 5.0  # between lines without a terminal
_LINE = "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
_started = time.monotonic()


def announce(phase: str) -> None:
    """Say on standard error what begins now, with the seconds since the command started."""
    print(f"[{time.monotonic() - _started:6.1f} s] {phase}", file=sys.stderr, flush=True)


class _Lines:
    """Standard error with a line for each state of a bar, instead of one over the other."""

    def write(self, text: str) -> None:
        if text := text.strip("\r\n"):
            sys.stderr.write(f"{text.rstrip()}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def bar(*iterable: Iterable[Any], **options: Any) -> tqdm[Any]:
    """tqdm's bar, with its arguments."""
    if not sys.stderr.isatty():
        options |= {"mininterval": _SECONDS, "file": _Lines(), "bar_format": _LINE}
    return tqdm(*iterable, **options)
