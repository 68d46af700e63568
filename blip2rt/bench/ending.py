"""What SIGTERM does to `blip2rt-bench`: every `with` is left, but nothing is left half begun or half removed.

Folders and processes that have to end with the command are made here.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

_held = 0  # blocks that SIGTERM has to wait for
_asked = 0  # the signal that came


def on_sigterm(number: int, frame: object) -> None:
    """Leave every `with` by SystemExit, once: `timeout` sends the signal twice."""
    global _asked
    signal.signal(number, signal.SIG_IGN)
    _asked = number
    if not _held:
        sys.exit(128 + number)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """SIGTERM waits until the block is left."""
    global _held
    _held += 1
    try:
        yield
    finally:
        _held -= 1
        if _asked and not _held:
            sys.exit(128 + _asked)


@contextlib.contextmanager
def temporary_folder() -> Iterator[str]:
    """A folder that goes with the block, and with it what others left there."""
    folder = None
    try:
        with held():
            folder = tempfile.TemporaryDirectory(prefix="blip2rt-bench-", ignore_cleanup_errors=True)
        yield folder.name
    finally:
        if folder is not None:
            with held():
                folder.cleanup()


@contextlib.contextmanager
def child(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with the block, by force where it still runs; its pipes are text."""
    process = None
    try:
        with held():
            process = subprocess.Popen(command, text=True, **options)
        yield process
    finally:
        if process is not None:
            with held(), process:
                process.kill()
