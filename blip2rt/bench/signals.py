"""SIGTERM in `blip2rt-bench` leaves every `with` block: temporary folders and child processes end with the command."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any


def on_sigterm(number: int, frame: object) -> None:
    """Exit by SystemExit, once: `timeout` sends the signal twice."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder that is removed at the end, with everything that child processes left in it."""
    return tempfile.TemporaryDirectory(prefix="blip2rt-bench-", ignore_cleanup_errors=True)


@contextlib.contextmanager
def _deferred_sigterm() -> Iterator[None]:
    """Delay SIGTERM until the end of the block."""
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if received:
            signal.raise_signal(signal.SIGTERM)


@contextlib.contextmanager
def child_process(command: Sequence[str], **pipes: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a process with text pipes and a temporary folder; kill it at the end if it still runs."""
    with temporary_folder() as folder:
        process = None
        try:
            with _deferred_sigterm():  # the signal would leave an unknown process
                process = subprocess.Popen(command, text=True, env={**os.environ, "TMPDIR": folder}, **pipes)
            yield process
        finally:
            if process is not None:
                with process:
                    process.kill()
