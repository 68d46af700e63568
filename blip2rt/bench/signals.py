"""SIGTERM in `blip2rt-bench`: leave every `with` block, and never interrupt creating or removing something.

Folders and child processes that must end with the command are created here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

_deferrals = 0  # active defer_sigterm blocks
_pending = 0  # the signal received, 0 for none


def on_sigterm(number: int, frame: object) -> None:
    """Exit by SystemExit, once: `timeout` sends the signal twice."""
    global _pending
    signal.signal(number, signal.SIG_IGN)
    _pending = number
    if not _deferrals:
        sys.exit(128 + number)


@contextlib.contextmanager
def defer_sigterm() -> Iterator[None]:
    """Delay SIGTERM until the end of the block."""
    global _deferrals
    _deferrals += 1
    try:
        yield
    finally:
        _deferrals -= 1
        if _pending and not _deferrals:
            sys.exit(128 + _pending)


@contextlib.contextmanager
def temporary_folder() -> Iterator[str]:
    """Create a folder that is removed at the end, with everything that child processes left in it."""
    folder = None
    try:
        with defer_sigterm():
            folder = tempfile.TemporaryDirectory(prefix="blip2rt-bench-", ignore_cleanup_errors=True)
        yield folder.name
    finally:
        if folder is not None:
            with defer_sigterm():
                folder.cleanup()


@contextlib.contextmanager
def child_process(command: Sequence[str], **pipes: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a process with text pipes and a temporary folder; kill it at the end if it still runs."""
    with temporary_folder() as folder:
        process = None
        try:
            with defer_sigterm():
                process = subprocess.Popen(command, text=True, env={**os.environ, "TMPDIR": folder}, **pipes)
            yield process
        finally:
            if process is not None:
                with defer_sigterm(), process:
                    process.kill()
